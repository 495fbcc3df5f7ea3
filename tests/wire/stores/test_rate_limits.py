"""Rate limits on requests and tokens are shared by all controllers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from llava_wire.errors import QueueUnavailable
from llava_wire.redis.keys import PREFIX
from llava_wire.stores.api_keys import KeyLimits
from llava_wire.stores.rate_limits import RateLimitStore

from tests.wire.redis_server import RedisServer

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000
LIMITS = KeyLimits(requests_per_min=3, tokens_per_min=600)  # one request per 20 s, 10 tokens per second


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RateLimitStore]:
    store = RateLimitStore(server.url_of("server"))
    yield store
    await store.aclose()


def age(server: RedisServer, tenant: str, ms: int) -> None:
    """Move the time of the tenant's last charge ``ms`` milliseconds into the past."""
    server.client.hincrby(f"{PREFIX}rate:{tenant}", "at", -ms)


@dataclass
class Elapsed:
    """The time in seconds, according to the Redis clock, during which buckets were refilling."""

    s: float = 0.0


@contextlib.contextmanager
def measured(server: RedisServer) -> Iterator[Elapsed]:
    def now_s() -> float:
        seconds, microseconds = server.client.time()
        return seconds + microseconds / 1e6

    elapsed, start_s = Elapsed(), now_s()
    yield elapsed
    elapsed.s = now_s() - start_s + 0.001  # scripts round to milliseconds


async def test_requests_over_the_limit_are_rejected_and_not_charged(
    store: RateLimitStore, server: RedisServer
) -> None:
    other = RateLimitStore(server.url_of("server"))  # store of another controller
    with measured(server) as elapsed:
        for each, remaining in ((store, 2), (other, 1), (store, 0)):
            status = await each.charge("t", LIMITS, requests=1)
            assert (status.is_allowed, status.remaining_requests) == (True, remaining)
        refused = [await each.charge("t", LIMITS, requests=1) for each in (other, store)]
    assert not any(status.is_allowed for status in refused)
    assert all(20 - elapsed.s <= status.wait_s <= 20 for status in refused)
    assert (await other.charge("u", LIMITS, requests=1)).is_allowed
    await other.aclose()


async def test_a_bucket_refills_in_proportion_to_time_up_to_its_size(
    store: RateLimitStore, server: RedisServer
) -> None:
    for _ in range(3):
        await store.charge("t", LIMITS, requests=1)
    age(server, "t", MINUTE_MS // 3)
    assert (await store.charge("t", LIMITS, requests=1)).is_allowed
    assert not (await store.charge("t", LIMITS, requests=1)).is_allowed
    age(server, "t", 10 * MINUTE_MS)
    assert (await store.charge("t", LIMITS, requests=1)).remaining_requests == 2


async def test_a_charge_larger_than_the_bucket_is_allowed_once_and_leaves_a_debt(
    store: RateLimitStore, server: RedisServer
) -> None:
    with measured(server) as elapsed:
        assert (await store.charge("t", LIMITS, tokens=1200)).remaining_tokens == -600
        refused = await store.charge("t", LIMITS, tokens=600)
    assert 120 - elapsed.s <= refused.wait_s <= 120
    age(server, "t", MINUTE_MS // 2)
    assert not (await store.charge("t", LIMITS, tokens=1)).is_allowed
    age(server, "t", MINUTE_MS * 3 // 2)
    assert (await store.charge("t", LIMITS, tokens=600)).is_allowed


async def test_a_debt_in_tokens_does_not_expire(store: RateLimitStore, server: RedisServer) -> None:
    await store.charge("t", LIMITS, tokens=1200)
    assert server.client.pttl(f"{PREFIX}rate:t") > MINUTE_MS


async def test_an_adjustment_refunds_or_charges_tokens(store: RateLimitStore, server: RedisServer) -> None:
    with measured(server) as elapsed:
        await store.charge("t", LIMITS, tokens=500)
        returned = await store.adjust("t", LIMITS, tokens=-400)
    assert 500 <= returned.remaining_tokens <= 500 + 10 * elapsed.s
    assert (await store.adjust("t", LIMITS, tokens=900)).remaining_tokens < 0
    assert (await store.adjust("t", LIMITS, tokens=-10_000)).remaining_tokens == 600


async def test_nothing_is_rejected_without_a_limit(store: RateLimitStore) -> None:
    for _ in range(50):
        assert (await store.charge("t", KeyLimits(), requests=1, tokens=10**6)).is_allowed


async def test_without_redis_every_call_raises() -> None:
    store = RateLimitStore("unix:///nowhere/s")
    with pytest.raises(QueueUnavailable):
        await store.charge("t", LIMITS, requests=1)
    await store.aclose()
