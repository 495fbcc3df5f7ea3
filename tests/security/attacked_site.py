"""A complete system with default limits that can be attacked and measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.processes import ControllerProcess, started, worker_factory
from tests.security.attacks import AttackName
from tests.server.api_key_cli import ApiKeyCli
from tests.waiting import async_wait_until
from tests.wire.redis_server import RedisServer, binary

__all__ = [
    "ANONYMOUS",
    "REDIS_LIMIT_BYTES",
    "STEP_S",
    "AttackedSite",
    "Attackers",
    "attacked_site",
    "attackers",
]

REDIS_LIMIT_BYTES = 256 << 20
ANONYMOUS = -1  # the index of a client without an API key
_SOFT_LIMIT = 1024  # on open files, the default of Linux
_NUM_SLOTS = 64  # of the worker, about half of the jobs of one attacker
STEP_S = 0.1  # of the worker, so that the time to the first token is that of a small model rather than 0


@dataclass(frozen=True)
class AttackedSite:
    """The processes, and the keys of a legitimate client and of three attackers."""

    controller: ControllerProcess
    process_ids: Sequence[int]  # of the controller, the worker and Redis
    queue: redis.Redis
    key: str
    attacker_keys: Sequence[str]


@contextmanager
def attacked_site(folder: Path) -> Iterator[AttackedSite]:
    """Yield a controller, an echo worker and a Redis whose memory is limited, all with default limits.

    ``folder`` must have a short path.
    """
    program = binary("valkey")
    assert program
    server = RedisServer(program, folder, options=f"--maxmemory {REDIS_LIMIT_BYTES}")
    server.start()
    try:
        with worker_factory(server.url, folder) as start_worker:
            worker = start_worker(echo_step_s=STEP_S, max_num_sequences=_NUM_SLOTS)
            with ThreadPoolExecutor() as pool:
                keys = list(pool.map(lambda _: ApiKeyCli(server.url).create(), range(4)))
            log = folder / "controller.log"
            controller = ControllerProcess(server.url, log, auth=True, image_workers=2)
            controller.prefix = ("sh", "-c", f'ulimit -Sn {_SOFT_LIMIT}; exec "$@"', "sh")
            with started(controller):
                process_ids = (controller.pid, worker.pid, server.pid)
                yield AttackedSite(controller, process_ids, server.client, keys[0], keys[1:])
    finally:
        server.kill()


class Attackers:
    """A process that attacks the site. ``counts`` contains the responses of each attack, by status."""

    def __init__(self, site: AttackedSite, process: asyncio.subprocess.Process) -> None:
        self._keys = (*site.attacker_keys, "")
        self._process = process
        self.counts: dict[AttackName, Counter[str]] = {}

    async def start(self, chosen: Sequence[tuple[AttackName, int]]) -> None:
        """Start attacks and wait until all of them have begun.

        ``chosen`` contains names of attacks, each with the index of an API key, or ANONYMOUS.
        Each client has an address of its own.
        """
        keys = self._keys
        self._send([(name, f"127.0.0.{index % len(keys) + 2}", keys[index]) for name, index in chosen])
        names = {name for name, _ in chosen}
        await async_wait_until(
            lambda: self._has_crashed or names == {name for name, counts in self.counts.items() if counts},
            "the attacks",
        )
        assert not self._has_crashed

    async def stop(self) -> None:
        """Close all connections of the attackers."""
        self._send([])
        await async_wait_until(lambda: self._has_crashed or not self.counts, "the end of the attacks")
        assert not self._has_crashed

    async def read_counts(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            self.counts = {name: Counter(each) for name, each in json.loads(line).items()}

    @property
    def _has_crashed(self) -> bool:
        return self._process.returncode is not None

    def _send(self, command: object) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command).encode() + b"\n")


@asynccontextmanager
async def attackers(site: AttackedSite) -> AsyncIterator[Attackers]:
    """Yield a process that can attack the site."""
    command = (sys.executable, "-m", "tests.security.attacks", site.controller.url)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    attackers = Attackers(site, process)
    reading = asyncio.create_task(attackers.read_counts())
    try:
        yield attackers
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading
