"""An operator's order reaches one worker once, and its report is in that worker's heartbeat."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from llava_wire.messages.commands import CommandStatus, IssuedCommand, ModelCommand
from llava_wire.operator.inspector import Inspector
from llava_wire.operator.worker_commands import CommandSender
from llava_wire.redis.keys import PREFIX

from tests.wire.lab import Lab

pytestmark = pytest.mark.anyio

LOAD = ModelCommand(model="tiny", precision="int8")
UNLOAD = ModelCommand()


@pytest.fixture
async def desk(lab: Lab) -> AsyncIterator[CommandSender]:
    desk = CommandSender(lab.server.url)
    yield desk
    await desk.aclose()


async def given(desk: CommandSender, instruction: ModelCommand) -> str:
    """The id of the order, which is taken."""
    answer = await desk.give("w1", instruction)
    assert answer is not None
    assert answer[1]
    return answer[0]


def report(order_id: str, *, is_running: bool = False) -> CommandStatus:
    return CommandStatus(order_id=order_id, state="running" if is_running else "done")


async def test_a_worker_hears_of_an_order_once_and_it_is_forgotten_when_it_is_settled(
    lab: Lab, desk: CommandSender
) -> None:
    worker = await lab.consumer()
    assert await worker.beat() is None
    order_id = await given(desk, LOAD)
    assert await worker.beat() == IssuedCommand(order_id, LOAD)
    assert await worker.beat() is None
    worker.report(report(order_id, is_running=True))
    await worker.beat()
    assert lab.keys("order:")
    worker.report(report(order_id))
    assert await worker.beat() is None
    assert not lab.keys("order:")
    inspector = Inspector(lab.server.url)
    (seen,) = (await inspector.fleet()).workers
    await inspector.aclose()
    assert seen.heartbeat.order == report(order_id)
    assert seen.order_id == ""


async def test_the_same_order_again_is_the_same_and_another_has_to_wait(
    lab: Lab, desk: CommandSender
) -> None:
    worker = await lab.consumer()
    order_id = await given(desk, LOAD)
    assert await desk.give("w1", LOAD) == (order_id, True)
    assert await desk.give("w1", UNLOAD) == (order_id, False)
    await worker.beat()
    worker.report(report(order_id))
    await worker.beat()
    later = await given(desk, UNLOAD)
    assert later != order_id
    assert await worker.beat() == IssuedCommand(later, UNLOAD)


async def test_an_order_that_comes_while_one_is_carried_out_is_heard_when_that_is_settled(
    lab: Lab, desk: CommandSender
) -> None:
    worker = await lab.consumer()
    first = await given(desk, LOAD)
    await worker.beat()
    worker.report(report(first, is_running=True))
    lab.redis.delete(PREFIX + "order:w1")  # as if Redis had come back empty
    second = await given(desk, UNLOAD)
    assert await worker.beat() is None
    worker.report(report(first))
    assert await worker.beat() == IssuedCommand(second, UNLOAD)


async def test_nobody_takes_an_order_for_a_worker_that_is_gone(lab: Lab, desk: CommandSender) -> None:
    assert await desk.give("w1", LOAD) is None
    worker, other = await lab.consumer(), await lab.consumer("w2")
    await given(desk, LOAD)
    assert await other.beat() is None
    lab.kill_worker("w1")
    assert await desk.give("w1", LOAD) is None
    assert 0 < lab.redis.pttl(PREFIX + "order:w1") <= 60_000
    await worker.leave()


async def test_an_order_lives_as_long_as_its_worker_beats(lab: Lab, desk: CommandSender) -> None:
    worker = await lab.consumer()
    order_id = await given(desk, LOAD)
    lab.redis.pexpire(PREFIX + "order:w1", 1000)
    assert await worker.beat() == IssuedCommand(order_id, LOAD)
    assert lab.redis.pttl(PREFIX + "order:w1") > 50_000
