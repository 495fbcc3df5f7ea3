"""Stored responses in Redis: chains, byte limits, eviction, expiry and responses without an output."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from llava_wire.errors import ResponseTooLarge
from llava_wire.redis.keys import PREFIX
from llava_wire.stores.responses import (
    BrokenChain,
    ResponseHead,
    ResponseLimits,
    ResponseStore,
    StoredResponse,
)

from tests.wire.harness import Harness

pytestmark = pytest.mark.anyio

HEAD = ResponseHead(model="m", created_at=1)
ENDED = ResponseHead(model="m", created_at=1, status="completed")
KIB = 1024
OVERHEAD = KIB + len(msgspec.msgpack.encode(HEAD))  # counted in addition to the input and the output
ENDED_OVERHEAD = KIB + len(msgspec.msgpack.encode(ENDED))
FOUR_KIB = b"x" * (5 * KIB - OVERHEAD)  # the data of a response that counts 5 KiB


@pytest.fixture
async def store(harness: Harness) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(harness.server.url, ttl_s=60, limits=ResponseLimits(20 * KIB, 50 * KIB))
    yield store
    await store.aclose()


def response(name: str, *, previous: str = "", data: bytes = b"in") -> StoredResponse:
    return StoredResponse(name, HEAD, previous, data, None)


async def add_chain(store: ResponseStore, length: int, *, tenant: str = "alice") -> None:
    for number in range(length):
        previous = f"r{number - 1}" if number else ""
        await store.add(response(f"r{number}", previous=previous), tenant=tenant)
        await store.finish(f"r{number}", ENDED, b"out", tenant=tenant)


async def test_a_response_has_its_output_once_it_is_finished(store: ResponseStore) -> None:
    await store.add(response("r0"), tenant="alice")
    assert await store.find("r0", tenant="alice") == response("r0")
    assert await store.finish("r0", ENDED, b"out", tenant="alice")
    assert await store.find("r0", tenant="alice") == StoredResponse("r0", ENDED, "", b"in", b"out")


async def test_an_empty_output_differs_from_a_missing_one(store: ResponseStore) -> None:
    await store.add(response("r0"), tenant="alice")
    await store.finish("r0", ENDED, b"", tenant="alice")
    found = await store.find("r0", tenant="alice")
    assert found is not None and found.output == b""


async def test_a_conversation_is_returned_oldest_first(store: ResponseStore) -> None:
    await add_chain(store, 5)
    found = await store.conversation("r4", tenant="alice", max_responses=10)
    assert [each.response_id for each in found] == ["r0", "r1", "r2", "r3", "r4"]
    last = await store.conversation("r4", tenant="alice", max_responses=2)
    assert ([each.response_id for each in last], last[0].previous_id) == (["r3", "r4"], "r2")


async def test_large_responses_of_a_conversation_are_read_in_parts(harness: Harness) -> None:
    store = ResponseStore(harness.server.url, ttl_s=60, limits=ResponseLimits(1 << 24, 1 << 25))
    sizes = [10, 3 << 20, 700_000, 700_000, (1 << 20) + 1]
    for number, size in enumerate(sizes):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        previous = f"r{number - 1}" if number else ""
        await store.add(response(f"r{number}", previous=previous, data=data), tenant="alice")
        await store.finish(f"r{number}", ENDED, data[::-1], tenant="alice")
    found = await store.conversation("r4", tenant="alice", max_responses=10)
    assert [len(each.input) for each in found] == sizes
    assert all(each.output == each.input[::-1] for each in found)
    await store.aclose()


async def test_another_tenant_sees_and_changes_nothing(store: ResponseStore) -> None:
    await add_chain(store, 2)
    assert await store.find("r1", tenant="bob") is None
    assert not await store.update("r1", HEAD, tenant="bob")
    assert not await store.finish("r1", HEAD, b"other", tenant="bob")
    assert not await store.remove("r1", tenant="bob")
    with pytest.raises(BrokenChain):
        await store.conversation("r1", tenant="bob", max_responses=10)
    await store.add(response("r2", previous="r1"), tenant="bob")
    with pytest.raises(BrokenChain, match="r1"):
        await store.conversation("r2", tenant="bob", max_responses=10)
    found = await store.find("r1", tenant="alice")
    assert found is not None and (found.head, found.output) == (ENDED, b"out")


async def test_a_removed_response_breaks_the_chain_and_the_error_names_it(store: ResponseStore) -> None:
    await add_chain(store, 3)
    assert await store.remove("r1", tenant="alice")
    with pytest.raises(BrokenChain, match="r1"):
        await store.conversation("r2", tenant="alice", max_responses=10)
    assert len(await store.conversation("r0", tenant="alice", max_responses=10)) == 1


async def test_a_response_that_lost_its_data_does_not_exist(harness: Harness, store: ResponseStore) -> None:
    await add_chain(store, 1)
    harness.redis.delete(f"{PREFIX}output:r0")
    assert await store.find("r0", tenant="alice") is None


async def test_a_response_added_again_is_not_new_and_its_input_does_not_change(store: ResponseStore) -> None:
    assert await store.add(response("r0"), tenant="alice")
    assert not await store.add(response("r0"), tenant="alice")
    assert not await store.add(response("r0", data=b"other"), tenant="alice")
    assert await store.find("r0", tenant="alice") == response("r0")


async def test_an_interrupted_write_can_be_repeated(harness: Harness, store: ResponseStore) -> None:
    await store.add(response("r0"), tenant="alice")
    harness.redis.set(f"{PREFIX}input:r0", b"i", keepttl=True)
    assert await store.add(response("r0"), tenant="alice")
    assert await store.find("r0", tenant="alice") == response("r0")


async def test_a_partly_written_input_does_not_exist(harness: Harness, store: ResponseStore) -> None:
    await store.add(response("r0", data=b"x" * 100), tenant="alice")
    harness.redis.set(f"{PREFIX}input:r0", b"x" * 99, keepttl=True)
    assert await store.find("r0", tenant="alice") is None


async def test_the_oldest_responses_of_a_tenant_are_removed_at_its_limit(
    harness: Harness, store: ResponseStore
) -> None:
    await store.add(response("other", data=FOUR_KIB), tenant="bob")
    for number in range(5):
        await store.add(response(f"r{number}", data=FOUR_KIB), tenant="alice")
    found = [await store.find(f"r{number}", tenant="alice") is not None for number in range(5)]
    assert found == [False, True, True, True, True]
    assert await store.find("other", tenant="bob") is not None
    assert harness.redis.get(f"{PREFIX}response_bytes:alice") == b"20480"
    assert harness.redis.get(f"{PREFIX}response_bytes") == b"25600"


async def test_the_oldest_responses_of_all_tenants_are_removed_at_the_total_limit(
    store: ResponseStore,
) -> None:
    for name in ("alice", "bob", "carol", "dave"):  # a tenant may use at most as many bytes as are free
        for number in range(4):
            await store.add(response(f"{name}{number}", data=FOUR_KIB), tenant=name)
    counts = dict.fromkeys(("alice", "bob", "carol", "dave"), 0)
    for name in counts:
        for number in range(4):
            counts[name] += await store.find(f"{name}{number}", tenant=name) is not None
    assert counts == {"alice": 3, "bob": 3, "carol": 2, "dave": 1}
    for name in ("erin", "frank"):
        await store.add(response(f"{name}0", data=FOUR_KIB), tenant=name)
        assert await store.find(f"{name}0", tenant=name) is not None
    assert await store.find("alice1", tenant="alice") is None
    assert await store.find("bob2", tenant="bob") is not None


async def test_a_response_above_the_limit_is_rejected_and_removes_nothing(store: ResponseStore) -> None:
    await add_chain(store, 1)
    with pytest.raises(ResponseTooLarge, match=r"20481 bytes are needed; the limit is 20480 bytes"):
        await store.add(response("big", data=b"x" * (20 * KIB + 1 - OVERHEAD)), tenant="alice")
    await store.add(response("fits", data=b"x" * (16 * KIB)), tenant="alice")
    assert await store.find("r0", tenant="alice") is not None


async def test_a_response_whose_output_exceeds_the_limit_is_removed(
    harness: Harness, store: ResponseStore
) -> None:
    await store.add(response("r0"), tenant="alice")
    assert not await store.finish("r0", ENDED, b"x" * 20 * KIB, tenant="alice")
    assert await store.find("r0", tenant="alice") is None
    assert harness.redis.get(f"{PREFIX}response_bytes") in (None, b"0")


async def test_an_output_does_not_remove_newer_responses(store: ResponseStore) -> None:
    for name in ("1-old", "2-new"):  # responses of the same millisecond are ordered by ID
        await store.add(response(name, data=b"x" * 8 * KIB), tenant="alice")
    assert not await store.finish("1-old", ENDED, b"x" * 8 * KIB, tenant="alice")
    assert await store.find("1-old", tenant="alice") is None
    assert await store.find("2-new", tenant="alice") is not None


async def test_an_output_is_stored_only_once(store: ResponseStore) -> None:
    await store.add(response("r0"), tenant="alice")
    assert await store.finish("r0", ENDED, b"first", tenant="alice")
    assert await store.finish("r0", HEAD, b"other output", tenant="alice")
    assert await store.find("r0", tenant="alice") == StoredResponse("r0", ENDED, "", b"in", b"first")


async def test_removed_and_expired_responses_do_not_count(harness: Harness, store: ResponseStore) -> None:
    await add_chain(store, 2)
    await store.remove("r0", tenant="alice")
    assert harness.redis.get(f"{PREFIX}response_bytes:alice") == b"%d" % (ENDED_OVERHEAD + 5)
    for name in ("responses", "responses:alice"):
        harness.redis.zadd(PREFIX + name, {f"r1 {ENDED_OVERHEAD + 5}": 1})  # expires the response
    await store.add(response("r2"), tenant="alice")
    assert harness.redis.get(f"{PREFIX}response_bytes") == b"%d" % (OVERHEAD + 2)
    assert harness.redis.get(f"{PREFIX}response_bytes:alice") == b"%d" % (OVERHEAD + 2)


async def test_a_lost_counter_is_repaired(harness: Harness, store: ResponseStore) -> None:
    await add_chain(store, 2)
    harness.redis.delete(f"{PREFIX}response_bytes", f"{PREFIX}response_bytes:alice")
    await store.add(response("r2"), tenant="alice")
    assert harness.redis.get(f"{PREFIX}response_bytes") == b"%d" % (2 * ENDED_OVERHEAD + OVERHEAD + 12)
    assert harness.redis.get(f"{PREFIX}response_bytes:alice") == b"%d" % (2 * ENDED_OVERHEAD + OVERHEAD + 12)


async def test_reading_a_conversation_restarts_its_ttl(harness: Harness, store: ResponseStore) -> None:
    await add_chain(store, 2)
    for name in ("response", "input", "output"):
        harness.redis.pexpire(f"{PREFIX}{name}:r0", 5000)
    await store.find("r0", tenant="alice")
    assert harness.redis.pttl(f"{PREFIX}response:r0") <= 5000
    await store.conversation("r1", tenant="alice", max_responses=10)
    assert all(harness.redis.pttl(f"{PREFIX}{name}:r0") > 50_000 for name in ("response", "input", "output"))


async def test_every_key_expires(harness: Harness, store: ResponseStore) -> None:
    await store.add(response("r0"), tenant="alice", is_listed=True)
    await store.finish("r0", ENDED, b"out", tenant="alice")
    permanent = {f"{PREFIX}{name}".encode() for name in ("responses", "response_bytes", "unsaved")}
    assert {key for key in harness.redis.keys("*") if harness.redis.ttl(key) == -1} <= permanent


async def test_listed_responses_are_paged_in_both_orders(store: ResponseStore) -> None:
    await add_chain(store, 2)  # not listed
    for number in range(5):
        await store.add(response(f"c{number}"), tenant="alice", is_listed=True)
    await store.remove("c2", tenant="alice")

    async def page(order: str, after: str = "", limit: int = 3) -> list[str]:
        found = await store.list_responses(
            tenant="alice", order="asc" if order == "asc" else "desc", after=after, limit=limit
        )
        return [each.response_id for each in found]

    assert await page("asc") == ["c0", "c1", "c3"]
    assert await page("asc", "c3") == ["c4"]
    assert await page("desc") == ["c4", "c3", "c1"]
    assert await page("desc", "c1") == ["c0"]
    assert await page("asc", "unknown") == await page("asc", "c4") == []
    assert await store.list_responses(tenant="bob", order="asc", after="", limit=3) == []


async def test_a_response_without_output_is_due_once_per_pause(
    harness: Harness, store: ResponseStore
) -> None:
    await store.add(response("r0"), tenant="alice")
    await store.add(response("r1"), tenant="alice")
    assert await store.due(10, pause_s=60) == []
    harness.redis.zadd(f"{PREFIX}unsaved", {"r0": 1, "r1": 2, "expired": 3})
    assert await store.due(1, pause_s=60) == [("r0", "alice")]
    assert await store.due(10, pause_s=60) == [("r1", "alice")]
    assert await store.due(10, pause_s=60) == []
    await store.finish("r0", ENDED, b"out", tenant="alice")
    await store.remove("r1", tenant="alice")
    assert harness.redis.zcard(f"{PREFIX}unsaved") == 0
