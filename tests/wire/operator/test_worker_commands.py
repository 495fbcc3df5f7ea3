"""An operator command reaches its worker exactly once, and the worker's heartbeats report its status."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from llava_wire.messages.load_command import CommandStatus, IssuedCommand, ModelCommand
from llava_wire.operator.inspector import Inspector
from llava_wire.operator.worker_commands import CommandSender
from llava_wire.redis.keys import PREFIX

from tests.wire.harness import Harness

pytestmark = pytest.mark.anyio

LOAD = ModelCommand(model="tiny", precision="int8")
UNLOAD = ModelCommand()


@pytest.fixture
async def sender(harness: Harness) -> AsyncIterator[CommandSender]:
    sender = CommandSender(harness.server.url_of("server"))
    yield sender
    await sender.aclose()


async def send(sender: CommandSender, command: ModelCommand) -> str:
    """Send a command, check that the command is accepted, and return its ID."""
    reply = await sender.send("w1", command)
    assert reply is not None
    command_id, is_accepted = reply
    assert is_accepted
    return command_id


def status(command_id: str, *, is_running: bool = False) -> CommandStatus:
    return CommandStatus(command_id=command_id, state="running" if is_running else "done")


async def test_a_worker_receives_a_command_once_and_it_is_deleted_when_finished(
    harness: Harness, sender: CommandSender
) -> None:
    worker = await harness.consumer()
    assert await worker.send_heartbeat() is None
    command_id = await send(sender, LOAD)
    assert await worker.send_heartbeat() == IssuedCommand(command_id, LOAD)
    assert await worker.send_heartbeat() is None
    worker.report_command(status(command_id, is_running=True))
    await worker.send_heartbeat()
    assert harness.keys("order:")
    worker.report_command(status(command_id))
    assert await worker.send_heartbeat() is None
    assert not harness.keys("order:")
    inspector = Inspector(harness.server.url_of("server"))
    (worker_status,) = (await inspector.status()).workers
    await inspector.aclose()
    assert worker_status.heartbeat.command == status(command_id)
    assert worker_status.pending_command_id == ""


async def test_an_equal_command_is_the_same_command_and_a_different_one_is_rejected(
    harness: Harness, sender: CommandSender
) -> None:
    worker = await harness.consumer()
    command_id = await send(sender, LOAD)
    assert await sender.send("w1", LOAD) == (command_id, True)
    assert await sender.send("w1", UNLOAD) == (command_id, False)
    await worker.send_heartbeat()
    worker.report_command(status(command_id))
    await worker.send_heartbeat()
    later = await send(sender, UNLOAD)
    assert later != command_id
    assert await worker.send_heartbeat() == IssuedCommand(later, UNLOAD)


async def test_a_command_sent_while_another_is_running_is_received_after_it(
    harness: Harness, sender: CommandSender
) -> None:
    worker = await harness.consumer()
    first = await send(sender, LOAD)
    await worker.send_heartbeat()
    worker.report_command(status(first, is_running=True))
    harness.redis.delete(PREFIX + "order:w1")  # simulates data loss
    second = await send(sender, UNLOAD)
    assert await worker.send_heartbeat() is None
    worker.report_command(status(first))
    assert await worker.send_heartbeat() == IssuedCommand(second, UNLOAD)


async def test_a_command_to_a_lost_worker_is_rejected(harness: Harness, sender: CommandSender) -> None:
    assert await sender.send("w1", LOAD) is None
    worker, other = await harness.consumer(), await harness.consumer("w2")
    await send(sender, LOAD)
    assert await other.send_heartbeat() is None
    harness.kill_worker("w1")
    assert await sender.send("w1", LOAD) is None
    assert 0 < harness.redis.pttl(PREFIX + "order:w1") <= 60_000
    await worker.deregister()


async def test_a_command_does_not_expire_while_its_worker_sends_heartbeats(
    harness: Harness, sender: CommandSender
) -> None:
    worker = await harness.consumer()
    command_id = await send(sender, LOAD)
    harness.redis.pexpire(PREFIX + "order:w1", 1000)
    assert await worker.send_heartbeat() == IssuedCommand(command_id, LOAD)
    assert harness.redis.pttl(PREFIX + "order:w1") > 30_000
