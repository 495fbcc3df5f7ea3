"""A CPU KV cache faults in its memory incrementally and preserves its contents."""

from __future__ import annotations

from itertools import takewhile

import psutil
import pytest
import torch
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.page_prefault import lazy_zeros, prefault_columns

IS_INT8 = pytest.mark.parametrize("is_int8", [False, True], ids=["exact", "int8"])


def make_cache(num_slots: int, *, is_int8: bool = False) -> KVCache:
    spec = KVCacheSpec(num_slots // 4, 4, 2, 4, 64, torch.bfloat16, is_int8)
    return KVCache(spec, torch.device("cpu"))


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@IS_INT8
def test_memory_becomes_resident_only_when_it_is_prefaulted(is_int8: bool) -> None:
    before = resident_bytes()
    cache = make_cache(1 << 15, is_int8=is_int8)
    size = cache.spec.num_bytes
    assert resident_bytes() - before < size / 4
    cache.prefault(1 << 14)
    assert size / 4 < resident_bytes() - before < size * 3 / 4
    num_calls = sum(1 for _ in takewhile(bool, iter(cache.prefault_more, None)))
    assert resident_bytes() - before > size * 7 / 8
    assert num_calls > 1  # the cache is not faulted in all at once
    assert not cache.prefault_more()


@IS_INT8
def test_prefaulting_preserves_the_contents(is_int8: bool) -> None:
    cache, slots = make_cache(1 << 12, is_int8=is_int8), torch.arange(1 << 12)
    cache.prefault(16)
    k, v = torch.randn(2, 1 << 12, 4, 64).bfloat16()
    cache.write(1, slots, k, v)
    written = torch.stack(cache.gather(1, slots))
    assert cache.prefault_more()
    while cache.prefault_more():
        pass
    assert torch.equal(torch.stack(cache.gather(1, slots)), written)


def test_prefaulting_more_has_no_effect_without_an_initial_prefault() -> None:
    assert not make_cache(64).prefault_more()


def test_every_page_of_every_row_is_faulted_in() -> None:
    zeros = lazy_zeros((3, 1000, 2048), torch.uint8)
    before = resident_bytes()
    assert sum(1 for _ in prefault_columns(zeros, 0)) == 3  # chunks of 2 MiB
    assert resident_bytes() - before > 3 * 1000 * 2048 * 0.9
    assert not zeros.any()
    assert sum(1 for _ in prefault_columns(zeros, 1000)) == 0
