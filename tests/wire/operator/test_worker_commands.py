"""An operator's order reaches one worker once, and its report is in that worker's heartbeat."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from llava_wire.messages.commands import CommandStatus, IssuedCommand, ModelCommand
from llava_wire.operator.inspector import Inspector
from llava_wire.operator.worker_commands import CommandSender
from llava_wire.redis.keys import PREFIX

from tests.wire.harness import Harness

pytestmark = pytest.mark.anyio

LOAD = ModelCommand(model="tiny", precision="int8")
UNLOAD = ModelCommand()


@pytest.fixture
async def desk(harness: Harness) -> AsyncIterator[CommandSender]:
    desk = CommandSender(harness.server.url)
    yield desk
    await desk.aclose()


async def given(desk: CommandSender, instruction: ModelCommand) -> str:
    """The id of the order, which is taken."""
    answer = await desk.send("w1", instruction)
    assert answer is not None
    assert answer[1]
    return answer[0]


def report(order_id: str, *, is_running: bool = False) -> CommandStatus:
    return CommandStatus(command_id=order_id, state="running" if is_running else "done")


async def test_a_worker_hears_of_an_order_once_and_it_is_forgotten_when_it_is_settled(
    harness: Harness, desk: CommandSender
) -> None:
    worker = await harness.consumer()
    assert await worker.send_heartbeat() is None
    order_id = await given(desk, LOAD)
    assert await worker.send_heartbeat() == IssuedCommand(order_id, LOAD)
    assert await worker.send_heartbeat() is None
    worker.report_command(report(order_id, is_running=True))
    await worker.send_heartbeat()
    assert harness.keys("order:")
    worker.report_command(report(order_id))
    assert await worker.send_heartbeat() is None
    assert not harness.keys("order:")
    inspector = Inspector(harness.server.url)
    (seen,) = (await inspector.status()).workers
    await inspector.aclose()
    assert seen.heartbeat.command == report(order_id)
    assert seen.pending_command_id == ""


async def test_the_same_order_again_is_the_same_and_another_has_to_wait(
    harness: Harness, desk: CommandSender
) -> None:
    worker = await harness.consumer()
    order_id = await given(desk, LOAD)
    assert await desk.send("w1", LOAD) == (order_id, True)
    assert await desk.send("w1", UNLOAD) == (order_id, False)
    await worker.send_heartbeat()
    worker.report_command(report(order_id))
    await worker.send_heartbeat()
    later = await given(desk, UNLOAD)
    assert later != order_id
    assert await worker.send_heartbeat() == IssuedCommand(later, UNLOAD)


async def test_an_order_that_comes_while_one_is_carried_out_is_heard_when_that_is_settled(
    harness: Harness, desk: CommandSender
) -> None:
    worker = await harness.consumer()
    first = await given(desk, LOAD)
    await worker.send_heartbeat()
    worker.report_command(report(first, is_running=True))
    harness.redis.delete(PREFIX + "order:w1")  # as if Redis had come back empty
    second = await given(desk, UNLOAD)
    assert await worker.send_heartbeat() is None
    worker.report_command(report(first))
    assert await worker.send_heartbeat() == IssuedCommand(second, UNLOAD)


async def test_nobody_takes_an_order_for_a_worker_that_is_gone(harness: Harness, desk: CommandSender) -> None:
    assert await desk.send("w1", LOAD) is None
    worker, other = await harness.consumer(), await harness.consumer("w2")
    await given(desk, LOAD)
    assert await other.send_heartbeat() is None
    harness.kill_worker("w1")
    assert await desk.send("w1", LOAD) is None
    assert 0 < harness.redis.pttl(PREFIX + "order:w1") <= 60_000
    await worker.deregister()


async def test_an_order_lives_as_long_as_its_worker_beats(harness: Harness, desk: CommandSender) -> None:
    worker = await harness.consumer()
    order_id = await given(desk, LOAD)
    harness.redis.pexpire(PREFIX + "order:w1", 1000)
    assert await worker.send_heartbeat() == IssuedCommand(order_id, LOAD)
    assert harness.redis.pttl(PREFIX + "order:w1") > 50_000
