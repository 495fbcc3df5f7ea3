"""The Triton kernel for decodes matches an fp64 reference for all shapes, and in plans, for all batches.

Without a GPU, the kernel runs in Triton's interpreter, which does not support bf16 products.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.base import DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import PagedBackend, QueryRows
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel, num_segments
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.triton_launch import num_multiprocessors, semaphores
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan
from torch import Tensor

from tests.worker.model.attention_batches import LAYER, make_metadata, random_cache

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU, the compiled kernel is tested in tests/gpu"
)


class Decodes(NamedTuple):
    """Rows with one new token each, and a KV cache in which every slot that no row can see contains NaN."""

    qkv: Tensor
    rotation: Rotation
    cache: KVCache
    slots: Tensor  # int64 [rows]
    rows: QueryRows


@pytest.fixture(scope="module")
def kernel() -> TritonDecodeKernel:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    return TritonDecodeKernel()


def make_decodes(
    contexts: list[int],
    *,
    kv_heads: int = 2,
    group: int = 1,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    is_int8: bool = False,
) -> Decodes:
    widths = [-(-context // block_size) for context in contexts]
    blocks = torch.randperm(sum(widths) + 1).tolist()
    tables = [[blocks.pop() for _ in range(width)] for width in widths]
    table = torch.tensor([each + [blocks[0]] * (max(widths) - len(each)) for each in tables])
    cache = KVCache(KVCacheSpec(sum(widths) + 1, block_size, 2, kv_heads, head_dim, dtype, is_int8), CPU)
    num_slots = cache.spec.num_tokens
    seen = torch.cat(
        [slots_of(row, context - 1, block_size) for row, context in zip(table, contexts, strict=True)]
    )
    rows = torch.full((2, num_slots, kv_heads, head_dim), torch.nan)
    rows[:, seen] = torch.randn(2, len(seen), kv_heads, head_dim)
    cache.write(LAYER, torch.arange(num_slots), *rows.to(dtype))
    lengths = torch.tensor(contexts, dtype=torch.int32)
    starts = torch.arange(len(contexts) + 1, dtype=torch.int32)
    slots = torch.stack([slots_of(row, n, block_size)[-1] for row, n in zip(table, contexts, strict=True)])
    angles = torch.randn(len(contexts), 1, head_dim // 2)
    return Decodes(
        torch.randn(len(contexts), (group + 2) * kv_heads, head_dim).to(dtype),
        Rotation(angles.cos().to(dtype), angles.sin().to(dtype), TorchKernels()),
        cache,
        slots,
        QueryRows(starts, lengths, starts, table.int(), 1, max(contexts)),
    )


def slots_of(table: Tensor, context: int, block_size: int) -> Tensor:
    positions = torch.arange(context)
    return table[positions // block_size].long() * block_size + positions % block_size


def reference(decodes: Decodes, window: int | None) -> Tensor:
    """Compute attention in fp64 from the contents of the cache, which contains the new tokens."""
    cache, rows = decodes.cache, decodes.rows
    kv_heads = cache.spec.num_kv_heads
    q = (
        TorchKernels()
        .rope(decodes.qkv[:, : -2 * kv_heads], decodes.rotation.cos, decodes.rotation.sin)
        .double()
    )
    outs = []
    for row, context in enumerate(rows.contexts.tolist()):
        begin = 0 if window is None else max(0, context - window)
        k, v = cache.gather(LAYER, slots_of(rows.tables[row], context, cache.block_size)[begin:])
        k, v = (each.double().repeat_interleave(q.shape[1] // kv_heads, 1) for each in (k, v))
        scores = torch.einsum("hd,nhd->hn", q[row], k) / q.shape[-1] ** 0.5
        outs.append(torch.einsum("hn,nhd->hd", scores.softmax(1), v))
    return torch.stack(outs)


def attend(kernel: TritonDecodeKernel, decodes: Decodes, window: int | None = None) -> Tensor:
    qkv, rotation, cache, slots, rows = decodes
    with uninitialized_memory_is_nan():
        return kernel.rope_and_attend(qkv, rotation, cache.layer(LAYER), slots, rows, window)


shapes = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(TOLERANCE)),
        "kv_heads": st.sampled_from([1, 2, 3]),
        "group": st.sampled_from([1, 4, 7]),
        "head_dim": st.sampled_from([16, 20, 64, 128]),
        "block_size": st.sampled_from([4, 16, 256]),
        "is_int8": st.booleans(),
    }
)


@settings(max_examples=30, deadline=None)
@given(
    shape=shapes,
    contexts=st.lists(st.sampled_from([1, 2, 16, 17, 33, 65, 300]), min_size=1, max_size=3),
    window=st.sampled_from([None, 1, 2, 30, 1000]),
    seed=st.integers(0, 99),
)
def test_the_kernel_agrees_with_fp64_and_writes_new_tokens_unless_the_cache_contains_them(
    kernel: TritonDecodeKernel, shape: dict[str, Any], contexts: list[int], window: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    decodes = make_decodes(contexts, **shape)
    expected_cache = copy.deepcopy(decodes.cache)
    decodes.rotation.rope_and_cache(decodes.qkv, expected_cache.layer(LAYER), decodes.slots)
    before = copy.deepcopy(decodes.cache)

    actual = attend(kernel, decodes, window)

    tolerance = TOLERANCE[shape["dtype"]] * (4 if shape["is_int8"] else 1)
    torch.testing.assert_close(
        actual.double(), reference(decodes, window), rtol=tolerance, atol=tolerance, check_dtype=False
    )
    for stored, expected in zip(
        decodes.cache.gather(LAYER, decodes.slots), expected_cache.gather(LAYER, decodes.slots), strict=True
    ):
        step = 0.05 if shape["is_int8"] else tolerance  # a code can differ by one after other rounding
        torch.testing.assert_close(stored, expected, rtol=tolerance, atol=step)
    queries = decodes.qkv[:, : -2 * shape["kv_heads"]]
    rotated = TorchKernels().rope(queries, decodes.rotation.cos, decodes.rotation.sin)
    with uninitialized_memory_is_nan():
        again = kernel.attend(rotated, decodes.cache.layer(LAYER), decodes.rows, window)
    torch.testing.assert_close(again, actual, rtol=tolerance, atol=tolerance)
    others = (
        torch.ones(before.spec.num_tokens, dtype=torch.bool)
        .index_fill(0, decodes.slots, False)
        .nonzero()[:, 0]
    )
    for stored, expected in zip(
        decodes.cache.gather(LAYER, others), before.gather(LAYER, others), strict=True
    ):
        torch.testing.assert_close(stored, expected, rtol=0, atol=0, equal_nan=True)
    assert not semaphores(1, CPU).any()


@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (2, 4)])
def test_long_contexts_are_divided_into_segments(
    kernel: TritonDecodeKernel, kv_heads: int, group: int
) -> None:
    torch.manual_seed(0)
    decodes = make_decodes([4000, 1, 70], kv_heads=kv_heads, group=group, head_dim=32)
    assert num_segments(3 * kv_heads, num_multiprocessors(CPU)) > 1

    actual = attend(kernel, decodes)

    torch.testing.assert_close(actual.double(), reference(decodes, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_heads", "expected"), [(1, 64), (32, 9), (40, 7), (264, 1), (128 * 32, 1)])
def test_all_multiprocessors_are_used_if_the_batch_is_small(num_heads: int, expected: int) -> None:
    assert num_segments(num_heads, 132) == expected


def test_a_nan_affects_only_its_row_and_kv_head(kernel: TritonDecodeKernel) -> None:
    torch.manual_seed(0)
    decodes = make_decodes([300, 40])
    keys = decodes.cache.layer(LAYER).keys
    keys[slots_of(decodes.rows.tables[0], 300, 16)[7], 1] = torch.nan

    out = attend(kernel, decodes)

    assert out[0, 1].isnan().all()
    assert out[0, 0].isfinite().all() and out[1].isfinite().all()


def test_copies_of_the_first_row_do_not_change_its_output(kernel: TritonDecodeKernel) -> None:
    """In a CUDA graph, unused rows are copies of the first row."""
    torch.manual_seed(0)
    qkv, rotation, cache, slots, rows = make_decodes([70, 20])
    alone = attend(kernel, Decodes(qkv, rotation, copy.deepcopy(cache), slots, rows))
    order = torch.tensor([0, 1, 0, 0])
    copied = Decodes(
        qkv[order],
        Rotation(rotation.cos[order], rotation.sin[order], rotation.kernels),
        cache,
        slots[order],
        QueryRows(rows.starts, rows.contexts[order], rows.starts, rows.tables[order], 1, 70),
    )

    out = attend(kernel, copied)

    torch.testing.assert_close(out[:2], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_consecutive_tokens_of_a_sequence_see_each_other_only_in_mixed_plans(
    kernel: TritonDecodeKernel, is_mixed: bool
) -> None:
    """The kernel writes and reads keys in one launch, so it must not be used for these tokens."""
    torch.manual_seed(0)
    metadata = make_metadata([(3, 20)])
    cache = random_cache(2, 16)
    expected_cache = copy.deepcopy(cache)
    qkv, angles = torch.randn(3, 4, 16).repeat(1, 2, 1)[:, :8], torch.randn(3, 1, 8)
    rotation = Rotation(angles.cos(), angles.sin(), TorchKernels())
    rows = DecodeMetadata(
        metadata.slot_mapping.flip(0),  # later tokens first, so that they would be computed first
        torch.tensor([20, 19, 18], dtype=torch.int32),
        metadata.block_tables.int().expand(3, -1),
    )
    reversed_rotation = Rotation(rotation.cos.flip(0), rotation.sin.flip(0), rotation.kernels)

    plan = PagedBackend(TritonKernel(), kernel).decode_plan(rows, cache, is_mixed=is_mixed)
    assert plan is not None
    out = plan.rope_and_attend(LAYER, qkv.flip(0), reversed_rotation, kv_heads=2).flip(0)

    reference_plan = SdpaBackend().plan(metadata, expected_cache)
    expected = reference_plan.rope_and_attend(LAYER, qkv, rotation, kv_heads=2)
    assert torch.allclose(out, expected, atol=1e-4) == is_mixed


@settings(max_examples=25, deadline=None)
@given(
    decodes=st.lists(st.integers(1, 40), max_size=2),
    prompts=st.lists(st.tuples(st.integers(2, 25), st.integers(0, 5)), max_size=2),
    is_int8=st.booleans(),
    window=st.sampled_from([None, 3, 17]),
    seed=st.integers(0, 99),
)
def test_a_plan_agrees_with_the_reference_for_mixed_batches(
    kernel: TritonDecodeKernel,
    decodes: list[int],
    prompts: list[tuple[int, int]],
    is_int8: bool,
    window: int | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    metadata = make_metadata(
        [(1, n) for n in decodes] + [(new, new + before) for new, before in prompts] or [(1, 33)]
    )
    reference_cache = random_cache(2, 16, is_int8=is_int8)
    cache = copy.deepcopy(reference_cache)
    num_tokens = len(metadata.slot_mapping)
    qkv, angles = torch.randn(num_tokens, 8, 16), torch.randn(num_tokens, 1, 8)
    rotation = Rotation(angles.cos(), angles.sin(), TorchKernels())

    plan = PagedBackend(TritonKernel(), kernel).plan(metadata, cache)
    actual = plan.rope_and_attend(LAYER, qkv, rotation, kv_heads=2, window=window)

    plan = SdpaBackend().plan(metadata, reference_cache)
    expected = plan.rope_and_attend(LAYER, qkv, rotation, kv_heads=2, window=window)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
