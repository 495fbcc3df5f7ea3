"""With the head counts of real models, all attention kernels that this GPU supports match the reference."""

from __future__ import annotations

import pytest
import torch
from llava_worker.model.attention.base import DecodeMetadata
from llava_worker.model.attention.flash import Flash3Kernel, FlashAttnKernel, VarlenKernel
from llava_worker.model.attention.paged import KernelUnavailable, PagedBackend, PagedKernel
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.self_test import self_test
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool

from tests.worker.model.attention_batches import (
    LAYER,
    attend,
    make_metadata,
    random_cache,
    random_qkv,
)

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 3e-2, torch.float32: 1e-4}
HEADS = {"7B": (32, 32, 128), "mistral": (32, 8, 128), "13B": (40, 40, 128), "narrow": (4, 2, 64)}
BATCHES = {
    "one decode": [(1, 700)],
    "decodes": [(1, n) for n in (1, 16, 255, 256, 257, 900)],
    "a prompt": [(613, 613)],
    "all kinds": [(1, 700), (1, 3), (64, 64), (100, 640), (2, 300), (9, 257)],
}
KERNELS: list[type[PagedKernel]] = [Flash3Kernel, FlashAttnKernel, VarlenKernel, TritonKernel]


@pytest.fixture(params=KERNELS, ids=lambda kernel: str(kernel.name))
def kernel(request: pytest.FixtureRequest) -> PagedKernel:
    try:
        kernel: PagedKernel = request.param()
    except KernelUnavailable as error:
        pytest.skip(str(error))
    return kernel


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_a_kernel_agrees_with_the_reference(
    kernel: PagedKernel, device: torch.device, dtype: torch.dtype, heads: str
) -> None:
    if dtype == torch.float32 and not isinstance(kernel, TritonKernel):
        pytest.skip("FlashAttention supports only 16-bit dtypes")
    num_heads, kv_heads, head_dim = HEADS[heads]
    block_size = max(64, kernel.block_size)
    for rows in BATCHES.values():
        for window in (None, 100):
            torch.manual_seed(0)
            cache = random_cache(kv_heads, head_dim, dtype, block_size=block_size, device=device)
            batch = make_metadata(rows, block_size=block_size, device=device)
            num_tokens = len(batch.slot_mapping)
            qkv = random_qkv(num_tokens, num_heads, kv_heads, head_dim, dtype=dtype, device=device)

            actual = attend(PagedBackend(kernel), batch, cache, qkv, window)

            expected = attend(SdpaBackend(), batch, cache, qkv, window)
            torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_a_kernel_passes_the_self_test_that_workers_run(
    kernel: PagedKernel, device: torch.device, dtype: torch.dtype, heads: str
) -> None:
    if dtype == torch.float32 and not isinstance(kernel, TritonKernel):
        pytest.skip("FlashAttention supports only 16-bit dtypes")
    num_heads, kv_heads, head_dim = HEADS[heads]
    text = TextConfig(
        hidden_size=num_heads * head_dim,
        num_attention_heads=num_heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
    )
    for decode_kernel in (None, TritonDecodeKernel()):
        assert self_test(PagedBackend(kernel, decode_kernel), text, dtype, device) is None
    if isinstance(kernel, TritonKernel):
        backend = PagedBackend(kernel, TritonDecodeKernel())
        assert self_test(backend, text, dtype, device, is_int8=True) is None


@torch.inference_mode()
def test_a_captured_kernel_uses_the_current_inputs(kernel: PagedKernel, device: torch.device) -> None:
    torch.manual_seed(0)
    block_size, backend = max(64, kernel.block_size), PagedBackend(kernel)
    cache = random_cache(8, 64, torch.float16, block_size=block_size, device=device)
    inputs = DecodeMetadata(
        slot_mapping=torch.zeros(3, dtype=torch.int64, device=device),
        context_lens=torch.ones(3, dtype=torch.int32, device=device),
        block_tables=torch.zeros(3, 16, dtype=torch.int32, device=device),
    )
    q, k, v = (torch.zeros(3, 8, 64, dtype=torch.float16, device=device) for _ in range(3))

    def compute() -> torch.Tensor:
        plan = backend.decode_plan(inputs, cache)
        assert plan is not None
        return plan.attend(LAYER, q, k, v)

    pool = CudaGraphPool(device)
    pool.warm_up(compute)
    out, replay = pool.capture(compute)
    for contexts in ([30, 900, 1], [300, 17, 260]):
        batch = make_metadata([(1, n) for n in contexts], block_size=block_size, device=device)
        inputs.slot_mapping.copy_(batch.slot_mapping)
        inputs.context_lens.copy_(torch.tensor(batch.context_lens))
        inputs.block_tables[:, : batch.block_tables.shape[1]] = batch.block_tables
        for part in (q, k, v):
            part.normal_()
        replay()
        expected = attend(SdpaBackend(), batch, cache, [q, k, v])
        torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
