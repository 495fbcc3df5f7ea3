"""A KV cache stores keys and values either exactly or quantized to int8 with one scale per row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from torch import Tensor

NUM_LAYERS, NUM_HEADS, HEAD_DIM = 3, 2, 16
IS_INT8 = pytest.mark.parametrize("is_int8", [False, True], ids=["exact", "int8"])
IS_HEAD_MAJOR = pytest.mark.parametrize("is_head_major", [False, True], ids=["token-major", "head-major"])


def make_cache(*, is_int8: bool, dtype: torch.dtype = torch.float32, is_head_major: bool = False) -> KVCache:
    spec = KVCacheSpec(4, 4, NUM_LAYERS, NUM_HEADS, HEAD_DIM, dtype, is_int8, is_head_major)
    return KVCache(spec, torch.device("cpu"))


def random_rows(num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, NUM_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def content(cache: KVCache) -> Tensor:  # [layers, 2, slots, heads, head_dim]
    slots = torch.arange(cache.spec.num_tokens)
    return torch.stack([torch.stack(cache.gather(layer, slots)) for layer in range(NUM_LAYERS)])


@IS_HEAD_MAJOR
def test_an_exact_cache_returns_what_was_written(is_head_major: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cache = make_cache(is_int8=False, dtype=dtype, is_head_major=is_head_major)
        slots = torch.tensor([9, 2, 14])
        k, v = random_rows(3, 1).to(dtype), random_rows(3, 2).to(dtype)

        cache.write(1, slots, k, v)

        assert not cache.is_int8
        keys, values = cache.gather(1, slots)
        assert torch.equal(keys, k) and torch.equal(values, v)


@IS_INT8
def test_a_head_major_cache_stores_the_rows_of_a_head_of_a_block_one_after_another(is_int8: bool) -> None:
    token_major, head_major = (make_cache(is_int8=is_int8, is_head_major=each) for each in (False, True))
    k, v = random_rows(16, 1), random_rows(16, 2)
    for cache in (token_major, head_major):
        cache.write(1, torch.arange(16), k, v)

    by_token, by_head = token_major.layer(1), head_major.layer(1)

    for tokens, heads in zip(by_token, by_head, strict=True):
        if isinstance(tokens, Tensor) and isinstance(heads, Tensor):
            assert heads.is_contiguous()
            assert torch.equal(heads, tokens.view(4, 4, *tokens.shape[1:]).transpose(1, 2))
        else:
            assert tokens == heads


def test_the_error_of_an_int8_cache_is_at_most_half_a_step() -> None:
    for scale in (1e-35, 1e-4, 1.0, 1e4, 1e30):
        cache, slots = make_cache(is_int8=True), torch.tensor([9, 2, 14])
        k, v = random_rows(3, 1) * scale, random_rows(3, 2) * scale
        k[1, 0] *= 1e3  # this row must not affect others
        v[2] = 0

        cache.write(1, slots, k, v)

        assert cache.is_int8
        for actual, written in zip(cache.gather(1, slots), (k, v), strict=True):
            half_a_step = written.abs().amax(-1, keepdim=True) / 127 / 2
            assert ((actual - written).abs() <= half_a_step * 1.003).all()
            assert not torch.equal(actual, written)


def test_int8_rows_are_rounded_to_the_model_dtype_only_once() -> None:
    k, slots = random_rows(16) * torch.logspace(-6, 3, 16)[:, None, None], torch.arange(16)
    for dtype in (torch.bfloat16, torch.float16):
        wide, narrow = make_cache(is_int8=True), make_cache(is_int8=True, dtype=dtype)
        for cache in (wide, narrow):
            cache.write(0, slots, k, k)

        assert torch.equal(narrow.gather(0, slots)[0], wide.gather(0, slots)[0].to(dtype))


def test_a_value_that_is_not_finite_affects_only_its_int8_row() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        cache, k = make_cache(is_int8=True), random_rows(2)
        k[0, 1, 5] = bad
        cache.write(0, torch.tensor([4, 5]), k, random_rows(2))

        keys, values = cache.gather(0, torch.tensor([4, 5]))

        assert not keys[0, 1].isfinite().any()
        assert keys[0, 0].isfinite().all()
        assert keys[1].isfinite().all()
        assert values.isfinite().all()


def test_int8_rows_do_not_depend_on_the_batch_they_are_written_in() -> None:
    k, v = random_rows(5, 1), random_rows(5, 2)
    alone, together = make_cache(is_int8=True), make_cache(is_int8=True)
    together.write(0, torch.arange(5), k, v)
    for token in range(5):
        alone.write(0, torch.tensor([token]), k[token : token + 1], v[token : token + 1])

    assert torch.equal(content(alone), content(together))


@IS_HEAD_MAJOR
@IS_INT8
def test_a_cache_has_the_size_of_its_spec(is_int8: bool, is_head_major: bool) -> None:
    cache = make_cache(is_int8=is_int8, is_head_major=is_head_major)
    stored = [tensor.nbytes for tensor in vars(cache).values() if isinstance(tensor, Tensor)]

    assert sum(stored) == cache.spec.num_bytes


def test_int8_halves_the_memory_of_llava_1_5_including_scales() -> None:
    exact, int8 = (
        KVCacheSpec(1, 16, 32, 32, 128, torch.float16, is_int8).bytes_per_block for is_int8 in (False, True)
    )

    assert (exact, int8) == (16 * 524288, 16 * 270336)
    assert int8 / exact < 0.52


@IS_HEAD_MAJOR
@IS_INT8
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_copied_rows_are_equal_and_all_others_unchanged(
    is_int8: bool, is_head_major: bool, data: st.DataObject
) -> None:
    """Sources and targets can overlap, because all sources are read before any target is written."""
    sources = data.draw(st.lists(st.integers(0, 15), max_size=8))
    targets = data.draw(st.permutations(range(16)))[: len(sources)]
    cache = make_cache(is_int8=is_int8, is_head_major=is_head_major)
    for layer in range(NUM_LAYERS):
        cache.write(layer, torch.arange(16), random_rows(16, layer), random_rows(16, 10 + layer))
    expected = content(cache)
    expected[:, :, targets] = expected[:, :, sources]

    cache.copy_rows(torch.tensor(sources, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64))

    assert torch.equal(content(cache), expected)


def attend(cuts: list[int], *, is_int8: bool, num_tokens: int = 13, window: int | None = None) -> Tensor:
    """Compute attention for a sequence in chunks that end at ``cuts``. Return [tokens, heads, head_dim]."""
    cache, table = make_cache(is_int8=is_int8), torch.tensor([[2, 0, 3, 1]])
    slots = torch.cat([torch.arange(4) + block * 4 for block in table[0].tolist()])
    q, k, v = (
        random_rows(num_tokens, 7).repeat(1, 2, 1),
        random_rows(num_tokens, 8),
        random_rows(num_tokens, 9),
    )
    outs = []
    for start, end in zip([0, *cuts], [*cuts, num_tokens], strict=True):
        chunk = AttentionMetadata((end - start,), (end,), int(end - start == 1), table, slots[start:end])
        plan = SdpaBackend().plan(chunk, cache)
        outs.append(plan.attend(0, q[start:end], k[start:end], v[start:end], window=window))
    return torch.cat(outs)


@IS_INT8
def test_attention_does_not_depend_on_the_chunks_of_a_prompt(is_int8: bool) -> None:
    for window in (None, 5):
        whole = attend([], is_int8=is_int8, window=window)
        for cuts in ([6], [1, 2, 3], [12], [4, 8, 12]):
            assert torch.allclose(attend(cuts, is_int8=is_int8, window=window), whole, atol=1e-5)


def test_int8_attention_is_close_to_exact_attention_and_applies_to_whole_prompts() -> None:
    error = (attend([], is_int8=True) - attend([], is_int8=False)).abs().max()

    assert 1e-4 < error < 0.05
