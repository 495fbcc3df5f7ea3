"""API keys in Redis are shared by all controllers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from llava_wire.errors import QueueUnavailable
from llava_wire.stores.api_keys import ApiKey, ApiKeyStore, KeyLimits

from tests.wire.redis_server import RedisServer

pytestmark = pytest.mark.anyio


def make_key(number: int, **limits: int) -> ApiKey:
    return ApiKey(
        digest=f"{number:064x}", name=f"key {number}", created_at=float(number), limits=KeyLimits(**limits)
    )


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[ApiKeyStore]:
    store = ApiKeyStore(server.url_of("server"))
    yield store
    await store.aclose()


async def read(store: ApiKeyStore, version: str = "") -> tuple[str, list[ApiKey]]:
    reply = await store.read(version)
    assert reply is not None
    return reply


async def test_an_added_key_is_read_with_its_limits(store: ApiKeyStore) -> None:
    keys = [make_key(1), make_key(2, tokens_per_min=5, priority=-3)]
    for key in reversed(keys):
        await store.add(key)
    assert (await read(store))[1] == keys


async def test_a_removed_key_is_gone_and_an_unknown_key_is_not_found(store: ApiKeyStore) -> None:
    await store.add(make_key(1))
    assert await store.remove(make_key(1).digest)
    assert not await store.remove(make_key(1).digest)
    assert not await store.remove("version")
    assert (await read(store))[1] == []


async def test_keys_that_have_not_changed_are_not_read_again(store: ApiKeyStore) -> None:
    await store.add(make_key(1))
    version, _ = await read(store)
    assert await store.read(version) is None
    await store.remove(make_key(1).digest)
    assert await store.read(version) is not None


async def test_keys_stored_again_after_data_loss_have_another_version(
    store: ApiKeyStore, server: RedisServer
) -> None:
    await store.add(make_key(1))
    version, _ = await read(store)
    server.client.flushall()
    await store.add(make_key(2))
    assert (await read(store, version))[1] == [make_key(2)]


async def test_without_redis_every_call_raises() -> None:
    store = ApiKeyStore("unix:///nowhere/s")
    with pytest.raises(QueueUnavailable):
        await store.read()
    await store.aclose()
