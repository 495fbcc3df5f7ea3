"""Each attention kernel that this machine has gives what the reference gives, with real models' heads."""

from __future__ import annotations

import pytest
import torch
from llava_worker.model.attention.base import DecodeMetadata
from llava_worker.model.attention.flash import FlashAttnKernel, KernelUnavailable, VarlenKernel
from llava_worker.model.attention.paged import PagedBackend, PagedKernel
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.triton import TritonKernel
from llava_worker.model.gpu.cuda_graphs import cuda_graph_capture

from tests.worker.model.paged_rows import LAYER, attend, draw, filled, pack

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 3e-2, torch.float32: 1e-4}
HEADS = {"7B": (32, 32, 128), "mistral": (32, 8, 128), "13B": (40, 40, 128), "narrow": (4, 2, 64)}
BATCHES = {
    "one answer": [(1, 700)],
    "answers": [(1, n) for n in (1, 16, 255, 256, 257, 900)],
    "a prompt": [(613, 613)],
    "all kinds": [(1, 700), (1, 3), (64, 64), (100, 640), (2, 300), (9, 257)],
}


@pytest.fixture(params=[FlashAttnKernel, VarlenKernel, TritonKernel], ids=lambda kind: kind.name)
def kernel(request: pytest.FixtureRequest) -> PagedKernel:
    try:
        return request.param()
    except KernelUnavailable as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("window", [None, 100])
def test_a_kernel_agrees_with_the_reference(
    kernel: PagedKernel, device, dtype: torch.dtype, heads: str, batch: str, window: int | None
) -> None:
    if dtype == torch.float32 and not isinstance(kernel, TritonKernel):
        pytest.skip("FlashAttention computes in 16 bit")
    torch.manual_seed(0)
    num_heads, kv_heads, head_dim = HEADS[heads]
    size = max(64, kernel.block_size)
    cache = filled(False, kv_heads, head_dim, dtype, block_size=size, device=device)
    rows = pack(BATCHES[batch], block_size=size, device=device)
    q, k, v = (
        draw(len(rows.slot_mapping), num, head_dim, dtype=dtype, device=device)
        for num in (num_heads, kv_heads, kv_heads)
    )

    ours = attend(PagedBackend(kernel), rows, cache, [q, k, v], window)

    theirs = attend(SdpaBackend(), rows, cache, [q, k, v], window)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@torch.inference_mode()
def test_a_recorded_kernel_follows_its_inputs(kernel: PagedKernel, device) -> None:
    torch.manual_seed(0)
    size, backend = max(64, kernel.block_size), PagedBackend(kernel)
    cache = filled(False, 8, 64, torch.float16, block_size=size, device=device)
    told = DecodeMetadata(
        slot_mapping=torch.zeros(3, dtype=torch.int64, device=device),
        context_lens=torch.ones(3, dtype=torch.int32, device=device),
        block_tables=torch.zeros(3, 16, dtype=torch.int32, device=device),
    )
    q, k, v = (torch.zeros(3, 8, 64, dtype=torch.float16, device=device) for _ in range(3))

    def compute() -> torch.Tensor:
        plan = backend.decode_plan(told, cache)
        assert plan is not None
        return plan.attend(LAYER, q, k, v)

    out, replay = cuda_graph_capture(device)(compute)
    for contexts in ([30, 900, 1], [300, 17, 260]):
        rows = pack([(1, n) for n in contexts], block_size=size, device=device)
        told.slot_mapping.copy_(rows.slot_mapping)
        told.context_lens.copy_(torch.tensor(rows.context_lens))
        told.block_tables[:, : rows.block_tables.shape[1]] = rows.block_tables
        for part in (q, k, v):
            part.normal_()
        replay()
        wanted = attend(SdpaBackend(), rows, cache, [q, k, v], None)
        torch.testing.assert_close(out, wanted, rtol=1e-2, atol=1e-2)
