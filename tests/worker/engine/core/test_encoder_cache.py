"""Tests of the encoder cache: the size limit, LRU eviction and tenant isolation."""

from __future__ import annotations

import torch
from llava_worker.engine.core.encoder_cache import EncoderCache

FEATURES = torch.zeros(2, 3)  # 24 bytes


def cached(cache: EncoderCache, *digests: str) -> list[bool]:
    return [("tenant", digest) in cache for digest in digests]


def fill(cache: EncoderCache, *digests: str) -> None:
    for digest in digests:
        cache.put(("tenant", digest), FEATURES)


def test_the_least_recently_used_image_is_evicted() -> None:
    cache = EncoderCache(2 * FEATURES.nbytes)
    fill(cache, "a", "b")
    cache.get(("tenant", "a"))

    fill(cache, "c")

    assert cached(cache, "a", "b", "c") == [True, False, True]
    assert cache.num_bytes == 2 * FEATURES.nbytes


def test_an_image_larger_than_the_cache_evicts_nothing() -> None:
    cache = EncoderCache(2 * FEATURES.nbytes)
    fill(cache, "a")

    cache.put(("tenant", "large"), torch.zeros(100))

    assert cached(cache, "a", "large") == [True, False]


def test_a_cache_of_zero_bytes_stores_nothing() -> None:
    cache = EncoderCache(0)
    fill(cache, "a")

    assert cache.get(("tenant", "a")) is None
    assert cache.num_bytes == 0


def test_tenants_do_not_share_images() -> None:
    cache = EncoderCache(1000)
    fill(cache, "a")

    assert cache.get(("other", "a")) is None
    assert (cache.num_hits, cache.num_misses) == (0, 1)


def test_the_byte_count_is_correct_after_repeated_puts_and_drops() -> None:
    cache = EncoderCache(1000)
    fill(cache, "a", "a", "b")
    assert cache.num_bytes == 2 * FEATURES.nbytes

    cache.drop(("tenant", "a"))
    cache.drop(("tenant", "a"))

    assert cached(cache, "a", "b") == [False, True]
    assert cache.num_bytes == FEATURES.nbytes
