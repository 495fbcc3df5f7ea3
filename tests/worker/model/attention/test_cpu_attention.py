"""The C++ attention kernels match the reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import llava_worker
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.attention.cpu import CpuBackend
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import read_config
from llava_worker.model.cpu.native import NativeKernels, cpu_kernels
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.quantization.precision import Precision
from torch import Tensor

from tests.worker.model.attention_batches import LAYER, attend, make_metadata, random_cache, random_qkv

CPU = torch.device("cpu")
TINY = Path(llava_worker.__file__).parent / "tiny"
KERNELS = cpu_kernels()
head_major_cache = partial(random_cache, is_head_major=True)
IS_INT8 = pytest.mark.parametrize("is_int8", [False, True], ids=["exact", "int8"])
needs_prefill_kernel = pytest.mark.skipif(
    not isinstance(KERNELS, NativeKernels) or not KERNELS.uses_prefill_attention(torch.bfloat16),
    reason="torch's attention is faster on this CPU",
)


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    if not isinstance(KERNELS, NativeKernels):
        pytest.skip("C++ kernels are not available on this machine")
    return CpuBackend(KERNELS)


@IS_INT8
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_of_any_kind_agree_with_the_reference(
    backend: CpuBackend, is_int8: bool, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    kv_heads, group, head_dim = (data.draw(st.sampled_from(n)) for n in ((1, 2, 3), (1, 2, 4), (16, 48, 24)))
    decodes = data.draw(st.lists(st.integers(1, 40), max_size=2))
    prompts = data.draw(st.lists(st.tuples(st.integers(2, 25), st.integers(0, 5)), max_size=1))
    drafts = data.draw(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 20)), max_size=1))
    several = [(new, new + before) for new, before in (*drafts, *prompts)]
    metadata = make_metadata([(1, n) for n in decodes] + several or [(1, 33)])
    qkv = random_qkv(len(metadata.slot_mapping), kv_heads * group, kv_heads, head_dim, dtype=dtype)
    window = data.draw(st.sampled_from([None, 1, 3, 17, 100]))
    cache = head_major_cache(kv_heads, head_dim, dtype, is_int8=is_int8)

    actual = attend(backend, metadata, cache, qkv, window)

    expected = attend(SdpaBackend(), metadata, cache, qkv, window)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@IS_INT8
def test_a_row_is_bitwise_identical_in_any_batch(backend: CpuBackend, is_int8: bool) -> None:
    torch.manual_seed(0)
    cache = head_major_cache(2, 32, is_int8=is_int8)
    batch = make_metadata([(1, context) for context in (38, 1, 20, 7)])
    qkv = random_qkv(4, 4, 2, 32)

    together = attend(backend, batch, cache, qkv)

    for row in range(4):
        one = slice(row, row + 1)
        alone = AttentionMetadata(
            (1,), batch.context_lens[one], 1, batch.block_tables[one], batch.slot_mapping[one]
        )
        assert torch.equal(attend(backend, alone, cache, [part[one] for part in qkv]), together[one])


# The blocks and the context of each row. Rows share all blocks, the first ones, or none, in any order.
SHARED_BLOCKS = [
    ([0, 1, 2, 3, 4, 5], 95),
    ([7, 8, 9], 33),
    ([0, 1, 2, 6], 64),
    ([0, 1, 2, 3, 4, 5], 96),
    ([0, 1, 2, 6, 10], 70),
    ([0, 1, 2], 48),
    ([0], 9),
    ([11, 1, 2], 41),
]


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@IS_INT8
def test_a_row_is_bitwise_identical_if_other_rows_share_its_blocks(
    backend: CpuBackend, is_int8: bool, dtype: torch.dtype, window: int | None
) -> None:
    for head_dim in (128, 48):
        torch.manual_seed(0)
        cache = head_major_cache(2, head_dim, dtype, is_int8=is_int8, block_size=16)
        rows = SHARED_BLOCKS * 3  # more than one task processes
        tables = torch.tensor([(blocks + [0] * 6)[:6] for blocks, _ in rows])
        slots = torch.tensor([blocks[(end - 1) // 16] * 16 + (end - 1) % 16 for blocks, end in rows])
        q, k, v = random_qkv(len(rows), 4, 2, head_dim, dtype=dtype)
        k, v = (each[: len(SHARED_BLOCKS)].repeat(3, 1, 1) for each in (k, v))
        contexts = tuple(end for _, end in rows)
        batch = AttentionMetadata((1,) * len(rows), contexts, len(rows), tables, slots)

        together = attend(backend, batch, cache, [q, k, v], window)

        expected = attend(SdpaBackend(), batch, cache, [q, k, v], window)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(together, expected, rtol=tolerance, atol=tolerance)
        for row in range(len(rows)):
            one = slice(row, row + 1)
            alone = AttentionMetadata((1,), contexts[one], 1, tables[one], slots[one])
            assert torch.equal(attend(backend, alone, cache, [q[one], k[one], v[one]], window), together[one])


def test_a_token_major_cache_is_rejected(backend: CpuBackend) -> None:
    with pytest.raises(ValueError, match="head-major"):
        backend.plan(make_metadata([(1, 5)]), random_cache(2, 32))


@IS_INT8
def test_a_token_is_bitwise_identical_with_draft_tokens_after_it(backend: CpuBackend, is_int8: bool) -> None:
    """The result for a token does not depend on later draft tokens, even if one of them contains a NaN."""
    torch.manual_seed(0)
    cache = head_major_cache(2, 32, is_int8=is_int8)
    batch = make_metadata([(4, 23)])
    qkv = random_qkv(4, 4, 2, 32)
    qkv[1][3] = float("nan")
    alone = [
        attend(
            backend,
            AttentionMetadata((1,), (20 + i,), 1, batch.block_tables, batch.slot_mapping[i : i + 1]),
            cache,
            [part[i : i + 1] for part in qkv],
        )
        for i in range(3)
    ]

    together = attend(backend, batch, cache, qkv)

    assert torch.equal(together[:3], torch.cat(alone))


def test_a_nan_in_another_row_is_not_read(backend: CpuBackend) -> None:
    torch.manual_seed(0)
    cache = head_major_cache(2, 16)
    qkv = random_qkv(2, 2, 2, 16)
    qkv[1][0, 0, 0] = float("nan")

    out = attend(backend, make_metadata([(1, 30), (1, 9)]), cache, qkv)

    assert out[1].isfinite().all()
    assert out[0, 0].isnan().all() and out[0, 1].isfinite().all()  # only the head with the NaN is affected


LONG_BLOCK_SIZE = 16  # tokens per block; with 40 blocks, the cache holds 640 tokens


def long_prompt(
    num_new: int,
    context: int,
    *,
    is_int8: bool = False,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
) -> tuple[AttentionMetadata, KVCache, list[Tensor]]:
    dtype = torch.bfloat16
    metadata = make_metadata([(num_new, context)], block_size=LONG_BLOCK_SIZE)
    cache = head_major_cache(kv_heads, head_dim, dtype, is_int8=is_int8, block_size=LONG_BLOCK_SIZE)
    return metadata, cache, random_qkv(num_new, heads, kv_heads, head_dim, dtype=dtype)


@needs_prefill_kernel
@IS_INT8
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 32), (3, 3, 48), (8, 1, 16)])
def test_long_prompts_in_bf16_agree_with_the_reference(
    backend: CpuBackend, is_int8: bool, heads: int, kv_heads: int, head_dim: int
) -> None:
    chunks = [(17, 17), (33, 129), (128, 128), (128, 256), (129, 257), (300, 300), (20, 611)]
    for num_new, context in chunks:
        for window in (None, 5, 130):
            torch.manual_seed(num_new)
            metadata, cache, qkv = long_prompt(
                num_new, context, is_int8=is_int8, heads=heads, kv_heads=kv_heads, head_dim=head_dim
            )
            actual = attend(backend, metadata, cache, qkv, window)
            expected = attend(SdpaBackend(), metadata, cache, qkv, window)
            torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@needs_prefill_kernel
@IS_INT8
def test_a_prompt_is_bitwise_identical_for_chunks_of_any_size(backend: CpuBackend, is_int8: bool) -> None:
    torch.manual_seed(0)
    batch, cache, qkv = long_prompt(300, 300, is_int8=is_int8)
    whole = attend(backend, batch, cache, qkv)

    for start, end in ((0, 135), (135, 170), (170, 300)):
        chunk = AttentionMetadata(
            (end - start,), (end,), 0, batch.block_tables, batch.slot_mapping[start:end]
        )
        assert torch.equal(attend(backend, chunk, cache, [x[start:end] for x in qkv]), whole[start:end])


@needs_prefill_kernel
def test_a_prompt_reads_nothing_beyond_its_context(backend: CpuBackend) -> None:
    """Neither unused slots in the last block nor slots in other blocks are read."""
    torch.manual_seed(0)
    metadata, cache, qkv = long_prompt(150, 150)
    stored = cache.layer(LAYER)
    stored.keys.fill_(float("nan"))
    stored.values.fill_(float("nan"))

    assert attend(backend, metadata, cache, qkv).isfinite().all()

    qkv[1][40] = float("nan")
    assert attend(backend, metadata, cache, qkv)[40:].isnan().all()


@needs_prefill_kernel
def test_large_scores_do_not_overflow_the_softmax(backend: CpuBackend) -> None:
    torch.manual_seed(0)
    metadata, cache, qkv = long_prompt(200, 200)
    qkv[0].mul_(1e3)

    actual = attend(backend, metadata, cache, qkv)

    expected = attend(SdpaBackend(), metadata, cache, qkv)
    torch.testing.assert_close(actual, expected, rtol=5e-2, atol=5e-2)


def test_the_cpu_backend_is_selected_only_with_cpp_kernels(backend: CpuBackend) -> None:
    text = read_config(TINY).text_config
    assert isinstance(KERNELS, NativeKernels)
    assert isinstance(choose_backend(Precision("bf16", torch.bfloat16, KERNELS), text, CPU), CpuBackend)
    assert isinstance(choose_backend(Precision("fp32", torch.float32), text, CPU), SdpaBackend)


@IS_INT8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_rope_and_cache_stores_the_same_keys_and_values_as_separate_operations(
    backend: CpuBackend, is_int8: bool, dtype: torch.dtype
) -> None:
    assert isinstance(KERNELS, NativeKernels)
    for head_dim in (16, 48, 128):
        torch.manual_seed(0)
        metadata = make_metadata([(1, 30), (37, 50)])
        num_tokens = len(metadata.slot_mapping)
        qkv = torch.randn(num_tokens, 4 + 2 * 2, head_dim).to(dtype)
        angles = torch.randn(num_tokens, 1, head_dim // 2)
        rotation = Rotation(angles.cos().to(dtype), angles.sin().to(dtype), KERNELS)
        fused, separate = (
            KVCache(KVCacheSpec(40, 4, 2, 2, head_dim, dtype, is_int8, is_head_major=True), CPU)
            for _ in range(2)
        )

        actual = backend.plan(metadata, fused).rope_and_attend(LAYER, qkv.clone(), rotation, kv_heads=2)

        q, k, v = torch.split(qkv, [4, 2, 2], dim=1)
        plan = backend.plan(metadata, separate)
        expected = plan.attend(LAYER, rotation.apply(q), rotation.apply(k), v)
        assert torch.equal(actual, expected)
        for stored, reference in zip(fused.tensors, separate.tensors, strict=True):
            assert (stored is None) == (reference is None)
            assert stored is None or reference is None or torch.equal(stored, reference)
