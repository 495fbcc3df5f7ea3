"""The ring of API keys and the minute of each tenant, as several controllers see them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from llava_wire.errors import QueueUnavailable
from llava_wire.redis.keys import PREFIX
from llava_wire.stores.api_keys import ApiKey, ApiKeyStore, KeyLimits
from llava_wire.stores.rate_limits import RateLimitStore

from tests.wire.redis_server import RedisServer

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000
LIMITS = KeyLimits(requests_per_min=3, tokens_per_min=600)


def make_key(number: int, **limits: int) -> ApiKey:
    return ApiKey(
        digest=f"{number:064x}", name=f"key {number}", created_at=float(number), limits=KeyLimits(**limits)
    )


@pytest.fixture
async def ring(server: RedisServer) -> AsyncIterator[ApiKeyStore]:
    ring = ApiKeyStore(server.url)
    yield ring
    await ring.aclose()


@pytest.fixture
async def windows(server: RedisServer) -> AsyncIterator[RateLimitStore]:
    windows = RateLimitStore(server.url)
    yield windows
    await windows.aclose()


def let_pass(server: RedisServer, tenant: str, ms: int) -> None:
    """As if the tenant's last charge had been so much earlier."""
    server.client.hincrby(f"{PREFIX}rate:{tenant}", "at", -ms)


async def test_a_key_added_is_read_back_with_its_limits(ring: ApiKeyStore) -> None:
    keys = [make_key(1), make_key(2, tokens_per_min=5, priority=-3)]
    for key in reversed(keys):
        await ring.add(key)
    news = await ring.read()
    assert news is not None
    assert news[1] == keys


async def test_a_key_removed_is_gone_and_an_unknown_one_is_not_found(ring: ApiKeyStore) -> None:
    await ring.add(make_key(1))
    assert await ring.remove(make_key(1).digest)
    assert not await ring.remove(make_key(1).digest)
    assert not await ring.remove("version")
    news = await ring.read()
    assert news is not None
    assert news[1] == []


async def test_a_ring_that_has_not_changed_is_not_read_again(ring: ApiKeyStore) -> None:
    await ring.add(make_key(1))
    news = await ring.read()
    assert news is not None
    assert await ring.read(news[0]) is None
    await ring.remove(make_key(1).digest)
    assert await ring.read(news[0]) is not None


async def test_a_ring_made_anew_after_redis_lost_it_is_not_taken_for_the_old_one(
    ring: ApiKeyStore, server: RedisServer
) -> None:
    await ring.add(make_key(1))
    news = await ring.read()
    assert news is not None
    server.client.flushall()
    await ring.add(make_key(2))
    again = await ring.read(news[0])
    assert again is not None
    assert again[1] == [make_key(2)]


async def test_requests_over_the_minute_are_refused_and_nothing_is_taken_for_them(
    windows: RateLimitStore, server: RedisServer
) -> None:
    there = RateLimitStore(server.url)  # another controller's
    for each, left in ((windows, 2), (there, 1), (windows, 0)):
        allowance = await each.charge("t", LIMITS, requests=1)
        assert (allowance.is_allowed, allowance.remaining_requests) == (True, left)
    refused = [await each.charge("t", LIMITS, requests=1) for each in (there, windows)]
    assert not any(allowance.is_allowed for allowance in refused)
    assert all(19 < allowance.wait_s <= 20 for allowance in refused)
    assert (await there.charge("u", LIMITS, requests=1)).is_allowed
    await there.aclose()


async def test_a_third_of_a_minute_brings_a_third_of_the_requests_and_never_more_than_all(
    windows: RateLimitStore, server: RedisServer
) -> None:
    for _ in range(3):
        await windows.charge("t", LIMITS, requests=1)
    let_pass(server, "t", MINUTE_MS // 3)
    assert (await windows.charge("t", LIMITS, requests=1)).is_allowed
    assert not (await windows.charge("t", LIMITS, requests=1)).is_allowed
    let_pass(server, "t", 10 * MINUTE_MS)
    assert (await windows.charge("t", LIMITS, requests=1)).remaining_requests == 2


async def test_a_charge_larger_than_the_minute_is_allowed_once_and_leaves_a_debt(
    windows: RateLimitStore, server: RedisServer
) -> None:
    assert (await windows.charge("t", LIMITS, tokens=1200)).remaining_tokens == -600
    assert 119 < (await windows.charge("t", LIMITS, tokens=600)).wait_s <= 120
    let_pass(server, "t", MINUTE_MS)
    assert not (await windows.charge("t", LIMITS, tokens=1)).is_allowed
    let_pass(server, "t", MINUTE_MS)
    assert (await windows.charge("t", LIMITS, tokens=600)).is_allowed


async def test_a_debt_in_tokens_does_not_forget_itself(windows: RateLimitStore, server: RedisServer) -> None:
    await windows.charge("t", LIMITS, tokens=1200)
    assert server.client.pttl(f"{PREFIX}rate:t") > MINUTE_MS


async def test_a_settlement_gives_back_and_takes_more(windows: RateLimitStore) -> None:
    await windows.charge("t", LIMITS, tokens=500)
    assert (await windows.adjust("t", LIMITS, tokens=-400)).remaining_tokens in (500, 501)
    assert (await windows.adjust("t", LIMITS, tokens=900)).remaining_tokens < 0
    assert (await windows.adjust("t", LIMITS, tokens=-10_000)).remaining_tokens == 600


async def test_without_a_limit_nothing_is_refused(windows: RateLimitStore) -> None:
    for _ in range(50):
        assert (await windows.charge("t", KeyLimits(), requests=1, tokens=10**6)).is_allowed


async def test_without_redis_nobody_is_told_yes(server: RedisServer) -> None:
    ring, windows = ApiKeyStore("unix:///nowhere/s"), RateLimitStore("unix:///nowhere/s")
    with pytest.raises(QueueUnavailable):
        await ring.read()
    with pytest.raises(QueueUnavailable):
        await windows.charge("t", LIMITS, requests=1)
    await ring.aclose()
    await windows.aclose()
