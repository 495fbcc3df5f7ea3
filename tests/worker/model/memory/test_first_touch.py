"""A CPU's KV cache takes its memory a part at a time, and never what has been written."""

from __future__ import annotations

from itertools import takewhile

import psutil
import pytest
import torch
from llava_worker.model.attention.int8_kv_cache import Int8KVCache
from llava_worker.model.attention.kv_cache import ExactKVCache, KVCache
from llava_worker.model.attention.page_prefault import touch, untouched_zeros

KINDS = [ExactKVCache, Int8KVCache]
MIB = 1 << 20


def make(kind: type, num_slots: int) -> KVCache:
    return kind(
        num_slots // 4,
        4,
        num_layers=2,
        num_heads=4,
        head_dim=64,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )


def num_resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_taken_as_it_is_claimed_and_no_sooner(kind: type) -> None:
    before = num_resident()
    cache = make(kind, 1 << 15)
    whole = (1 << 15) * kind.bytes_per_block(1, num_layers=2, num_heads=4, head_dim=64, dtype=torch.bfloat16)
    assert num_resident() - before < whole / 4
    cache.claim(1 << 14)
    assert whole / 4 < num_resident() - before < whole * 3 / 4
    num_times = len(list(takewhile(bool, iter(cache.claim_more, None))))
    assert num_resident() - before > whole * 7 / 8
    assert num_times > 1  # a few milliseconds each
    assert not cache.claim_more()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_stays_while_more_is_claimed(kind: type) -> None:
    cache, slots = make(kind, 1 << 12), torch.arange(1 << 12)
    cache.claim(16)
    k, v = torch.randn(2, 1 << 12, 4, 64).bfloat16()
    cache.write(1, slots, k, v)
    written = torch.stack(cache.gather(1, slots))
    assert cache.claim_more()
    while cache.claim_more():
        pass
    assert torch.equal(torch.stack(cache.gather(1, slots)), written)


def test_a_cache_that_nobody_claimed_has_nothing_to_claim_more_of() -> None:
    assert not make(ExactKVCache, 64).claim_more()


def test_every_page_is_touched_in_every_row() -> None:
    zeros = untouched_zeros((3, 1000, 2048), torch.uint8)
    before = num_resident()
    assert sum(1 for _ in touch(zeros, 0)) == 3  # 2 MiB each
    assert num_resident() - before > 3 * 1000 * 2048 * 0.9
    assert not zeros.any()
    assert sum(1 for _ in touch(zeros, 1000)) == 0
