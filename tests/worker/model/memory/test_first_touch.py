"""A CPU's KV cache takes its memory a part at a time, and never what has been written."""

from __future__ import annotations

from itertools import takewhile

import psutil
import pytest
import torch
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.page_prefault import lazy_zeros, prefault_columns

KINDS = [False, True]
MIB = 1 << 20


def make(is_int8: bool, num_slots: int) -> KVCache:
    spec = KVCacheSpec(num_slots // 4, 4, 2, 4, 64, torch.bfloat16, is_int8)
    return KVCache(spec, torch.device("cpu"))


def num_resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.mark.parametrize("is_int8", KINDS)
def test_memory_is_taken_as_it_is_claimed_and_no_sooner(is_int8: bool) -> None:
    before = num_resident()
    cache = make(is_int8, 1 << 15)
    whole = cache.spec.num_bytes
    assert num_resident() - before < whole / 4
    cache.prefault(1 << 14)
    assert whole / 4 < num_resident() - before < whole * 3 / 4
    num_times = len(list(takewhile(bool, iter(cache.prefault_more, None))))
    assert num_resident() - before > whole * 7 / 8
    assert num_times > 1  # a few milliseconds each
    assert not cache.prefault_more()


@pytest.mark.parametrize("is_int8", KINDS)
def test_what_was_written_stays_while_more_is_claimed(is_int8: bool) -> None:
    cache, slots = make(is_int8, 1 << 12), torch.arange(1 << 12)
    cache.prefault(16)
    k, v = torch.randn(2, 1 << 12, 4, 64).bfloat16()
    cache.write(1, slots, k, v)
    written = torch.stack(cache.gather(1, slots))
    assert cache.prefault_more()
    while cache.prefault_more():
        pass
    assert torch.equal(torch.stack(cache.gather(1, slots)), written)


def test_a_cache_that_nobody_claimed_has_nothing_to_claim_more_of() -> None:
    assert not make(False, 64).prefault_more()


def test_every_page_is_touched_in_every_row() -> None:
    zeros = lazy_zeros((3, 1000, 2048), torch.uint8)
    before = num_resident()
    assert sum(1 for _ in prefault_columns(zeros, 0)) == 3  # 2 MiB each
    assert num_resident() - before > 3 * 1000 * 2048 * 0.9
    assert not zeros.any()
    assert sum(1 for _ in prefault_columns(zeros, 1000)) == 0
