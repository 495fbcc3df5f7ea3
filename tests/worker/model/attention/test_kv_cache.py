"""Keys and values come back as they were written: exactly, or in 8 bit as near as 8 bit can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from torch import Tensor

CPU = torch.device("cpu")
KINDS = [False, True]
NUM_LAYERS, NUM_HEADS, HEAD_DIM = 3, 2, 16


def make(
    is_int8: bool, num_blocks: int = 4, block_size: int = 4, dtype: torch.dtype = torch.float32
) -> KVCache:
    spec = KVCacheSpec(num_blocks, block_size, NUM_LAYERS, NUM_HEADS, HEAD_DIM, dtype, is_int8)
    return KVCache(spec, CPU)


def draw(num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, NUM_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def filled(is_int8: type) -> KVCache:
    """Every slot of every layer holds something of its own."""
    cache = make(is_int8)
    for layer in range(NUM_LAYERS):
        cache.write(layer, torch.arange(16), draw(16, layer), draw(16, 10 + layer))
    return cache


def content(cache: KVCache) -> Tensor:  # [layers, 2, slots, heads, head_dim]
    everything = torch.arange(cache.num_blocks * cache.block_size)
    return torch.stack([torch.stack(cache.gather(layer, everything)) for layer in range(NUM_LAYERS)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_exact_cache_gives_back_what_was_written(dtype: torch.dtype) -> None:
    cache, slots = make(False, dtype=dtype), torch.tensor([9, 2, 14])
    k, v = draw(3, 1).to(dtype), draw(3, 2).to(dtype)

    cache.write(1, slots, k, v)

    assert not cache.is_int8
    assert all(torch.equal(got, put) for got, put in zip(cache.gather(1, slots), (k, v), strict=True))


@pytest.mark.parametrize("scale", [1e-35, 1e-4, 1.0, 1e4, 1e30])
def test_an_8_bit_cache_is_off_by_half_a_step_of_each_row_at_most(scale: float) -> None:
    cache, slots = make(True), torch.tensor([9, 2, 14])
    k, v = draw(3, 1) * scale, draw(3, 2) * scale
    k[1, 0] *= 1e3  # a head that is large must cost its neighbours nothing
    v[2] = 0

    cache.write(1, slots, k, v)

    assert cache.is_int8
    for got, put in zip(cache.gather(1, slots), (k, v), strict=True):
        half_a_step = put.abs().amax(-1, keepdim=True) / 127 / 2
        assert ((got - put).abs() <= half_a_step * 1.003).all()
        assert not torch.equal(got, put)


def test_an_8_bit_cache_speaks_the_model_s_number_format() -> None:
    cache = make(True, dtype=torch.bfloat16)
    cache.write(0, torch.tensor([3]), draw(1).bfloat16(), draw(1).bfloat16())

    assert {rows.dtype for rows in cache.gather(0, torch.tensor([3]))} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_8_bit_rows_are_rounded_to_the_model_s_format_once(dtype: torch.dtype) -> None:
    k = draw(16) * torch.logspace(-6, 3, 16)[:, None, None]
    wide, narrow = make(True), make(True, dtype=dtype)
    for cache in (wide, narrow):
        cache.write(0, torch.arange(16), k, k)

    assert torch.equal(narrow.gather(0, torch.arange(16))[0], wide.gather(0, torch.arange(16))[0].to(dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_number_stays_one_in_8_bit_and_breaks_no_other_row(bad: float) -> None:
    cache, k = make(True), draw(2)
    k[0, 1, 5] = bad
    cache.write(0, torch.tensor([4, 5]), k, draw(2))

    keys, values = cache.gather(0, torch.tensor([4, 5]))

    assert not keys[0, 1].isfinite().any()
    assert keys[0, 0].isfinite().all()
    assert keys[1].isfinite().all()
    assert values.isfinite().all()


def test_8_bit_rows_do_not_depend_on_who_is_written_with_them() -> None:
    k, v, alone, together = draw(5, 1), draw(5, 2), make(True), make(True)
    together.write(0, torch.arange(5), k, v)
    for token in range(5):
        alone.write(0, torch.tensor([token]), k[token : token + 1], v[token : token + 1])

    assert torch.equal(content(alone), content(together))


@pytest.mark.parametrize("is_int8", KINDS)
def test_a_cache_is_as_large_as_it_says(is_int8: bool) -> None:
    cache = make(is_int8)
    stored = [tensor.nbytes for tensor in vars(cache).values() if isinstance(tensor, Tensor)]

    assert sum(stored) == cache.spec.num_bytes


def test_8_bit_halves_the_memory_of_llava_1_5_scales_included() -> None:
    exact, int8 = (
        KVCacheSpec(1, 16, 32, 32, 128, torch.float16, is_int8).bytes_per_block for is_int8 in KINDS
    )

    assert (exact, int8) == (16 * 524288, 16 * 270336)
    assert int8 / exact < 0.52


@pytest.mark.parametrize("is_int8", KINDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_copied_rows_are_equal_and_all_others_untouched(is_int8: bool, data: st.DataObject) -> None:
    """Sources may be targets too: all are read before any is written."""
    sources = data.draw(st.lists(st.integers(0, 15), max_size=8))
    targets = data.draw(st.permutations(range(16)))[: len(sources)]
    cache = filled(is_int8)
    expected = content(cache)
    expected[:, :, targets] = expected[:, :, sources]

    cache.copy_rows(torch.tensor(sources, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64))

    assert torch.equal(content(cache), expected)


def attend(is_int8: bool, cuts: list[int], *, num_tokens: int = 13, window: int | None = None) -> Tensor:
    """One sequence through a cache in chunks that end at ``cuts``; [tokens, heads, head_dim]."""
    cache, table = make(is_int8), torch.tensor([[2, 0, 3, 1]])
    slots = torch.cat([torch.arange(4) + block * 4 for block in table[0].tolist()])
    q, k, v = draw(num_tokens, 1).repeat(1, 2, 1), draw(num_tokens, 2), draw(num_tokens, 3)
    outputs, start = [], 0
    for end in [*cuts, num_tokens]:
        rows = AttentionMetadata((end - start,), (end,), int(end - start == 1), table, slots[start:end])
        plan = SdpaBackend().plan(rows, cache)
        new = slice(start, end)
        outputs.append(plan.attend(1, q[new], k[new], v[new], window=window))
        start = end
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("cuts", [[6], [1, 2, 3], [12], [4, 8, 12]], ids=str)
@pytest.mark.parametrize("is_int8", KINDS)
def test_attention_does_not_depend_on_how_a_prompt_is_cut(is_int8: bool, cuts: list[int], window) -> None:
    whole = attend(is_int8, [], window=window)

    assert torch.allclose(attend(is_int8, cuts, window=window), whole, atol=1e-5)


def test_8_bit_attention_is_near_the_exact_one_and_not_the_same_even_over_a_whole_prompt() -> None:
    error = (attend(True, []) - attend(False, [])).abs().max()

    assert 1e-4 < error < 0.05
