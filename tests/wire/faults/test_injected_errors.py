"""Any error reply, at any command, interrupts no stream. ``--exhaustive`` runs 2,000 seeds on each server.

``LLAVA_ERROR_SEED=n`` runs only the seed n.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import redis
from llava_wire.controller_side import event_reader
from llava_wire.worker_side import consumer

from tests.faults.error_injector import ERROR_REPLIES, running_injector
from tests.wire.faults.error_run import ErrorRun
from tests.wire.redis_server import RedisServer

NUM_RUNS, NUM_EXHAUSTIVE_RUNS = 75, 2000  # on each server
NUM_PARALLEL = 15  # each run in progress uses one of the server's 16 databases

pytestmark = pytest.mark.anyio


async def run_seeds(
    server: RedisServer, socket: Path, database: int, seeds: Iterator[int], num_faults: Counter[str]
) -> None:
    """Run seeds one after another until the iterator is exhausted."""
    async with running_injector(server.socket, socket) as injector:
        with redis.Redis(unix_socket_path=str(server.socket), db=database) as client:
            for seed in seeds:
                url = f"unix://runner:secret@{socket}?db={database}&client_name=run"
                try:
                    await ErrorRun(seed, url, injector, client).run()
                except Exception as error:
                    raise AssertionError(f"seed {seed} failed") from error
    num_faults.update(injector.num_faults)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the blocking reads, so that a run in which wake-ups are lost takes milliseconds."""
    monkeypatch.setattr(event_reader, "BLOCK_MS", 100)
    monkeypatch.setattr(consumer, "WAIT_S", 0.1)


@pytest.mark.timeout(3600)
async def test_every_stream_survives_random_error_replies(
    short_waits: None, server: RedisServer, pytestconfig: pytest.Config
) -> None:
    server.client.execute_command("ACL", "SETUSER", "runner", "on", ">secret", "~*", "&*", "+@all")
    is_exhaustive = bool(pytestconfig.getoption("exhaustive"))
    only = os.environ.get("LLAVA_ERROR_SEED")
    seeds = iter([int(only)] if only else range(NUM_EXHAUSTIVE_RUNS if is_exhaustive else NUM_RUNS))
    num_faults: Counter[str] = Counter()
    begin = time.monotonic()
    async with anyio.create_task_group() as group:
        for slot in range(NUM_PARALLEL):
            socket = server.socket.with_name(f"i{slot}")
            group.start_soon(run_seeds, server, socket, slot + 1, seeds, num_faults)
    print(f"{sum(num_faults.values())} faults in {time.monotonic() - begin:.0f} s")  # noqa: T201
    if not only:
        injected = {name.partition(" ")[2] for name in num_faults if name.startswith("REFUSE")}
        assert injected == {reply.partition(" ")[0] for reply in ERROR_REPLIES}
