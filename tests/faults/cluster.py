"""A whole system for fault tests: one queue, a path to it for each kind of process, controllers, workers.

It lives as long as a module's tests; ``revive`` brings back what a test killed before the next one starts.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import redis
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.redis.keys import PERMANENT, PREFIX

from tests.faults.processes import ControllerProcess, WorkerProcess
from tests.faults.proxy import FaultProxy
from tests.waiting import wait_until
from tests.wire.redis_server import RedisServer, binary

__all__ = ["Cluster", "running_cluster"]


class Cluster:
    """``controllers`` reach the queue through ``front``, ``workers`` through ``back``."""

    def __init__(
        self,
        folder: Path,
        *,
        num_controllers: int,
        num_workers: int,
        is_durable: bool,
        server: dict[str, Any],
        worker: dict[str, Any],
        acl: str | None,
        queue_port: int,
    ) -> None:
        program = binary("valkey")
        assert program
        self.queue = RedisServer(program, folder, is_durable=is_durable, port=queue_port)
        self.queue.start()
        if acl:
            self.queue.restrict(acl)
        socket = folder / "s"
        self.front, self.back = FaultProxy(socket), FaultProxy(socket)
        self.controllers = [
            ControllerProcess(
                _as(self.front.url, "server", acl), folder / f"controller-{number}.log", **server
            )
            for number in range(num_controllers)
        ]
        self.workers = [
            WorkerProcess(_as(self.back.url, "worker", acl), folder / f"worker-{number}.log", **worker)
            for number in range(num_workers)
        ]

    @property
    def redis(self) -> redis.Redis:
        return self.queue.client

    def revive(self) -> None:
        """Healthy, and nothing of earlier tests is under way."""
        self.front.heal()
        self.back.heal()
        for process in (*self.workers, *self.controllers):
            if process.status is not None:
                process.start()
        wait_until(lambda: all(worker.is_ready for worker in self.workers), "workers")
        wait_until(lambda: all(each.is_ready() for each in self.controllers), "controllers")
        wait_until(lambda: self.is_idle, "an idle system")
        self.redis.delete(f"{PREFIX}dlq")

    @property
    def is_idle(self) -> bool:
        return not self.key_names("inflight:") and not self.key_names("wait")

    def key_names(self, kind: str = "") -> list[str]:
        return [key.decode() for key in self.redis.scan_iter(f"{PREFIX}{kind}*", count=1000)]

    def state(self, job_id: str) -> str | None:
        state = self.redis.hget(f"{PREFIX}job:{job_id}", "state")
        return state.decode() if isinstance(state, bytes) else None

    def holder(self, job_id: str) -> WorkerProcess:
        """The worker that runs the job now."""
        worker_id = self.redis.hget(f"{PREFIX}job:{job_id}", "worker")
        assert isinstance(worker_id, bytes)
        (found,) = [worker for worker in self.workers if worker_id.decode() in worker.log]
        return found

    def is_held_by_another(self, job_id: str, than: WorkerProcess) -> bool:
        """Whether another worker has it; not while it waits for one."""
        worker_id = self.redis.hget(f"{PREFIX}job:{job_id}", "worker")
        return isinstance(worker_id, bytes) and worker_id != b"" and worker_id.decode() not in than.log

    def assert_no_key_leaks(self) -> None:
        """Each key but the short list has a time to live."""
        leaks = {key for key in self.key_names() if self.redis.ttl(key) == -1} - set(PERMANENT)
        assert not leaks

    def num_running(self, worker: WorkerProcess) -> float | None:
        """How many sequences its engine has, as it says itself; None while it says nothing."""
        for key in self.key_names("heartbeat:"):
            if key.rpartition(":")[2] in worker.log and (packed := self.redis.get(key)):
                assert isinstance(packed, bytes)
                return msgspec.msgpack.decode(packed, type=Heartbeat).stats["num_running"]
        return None

    def close(self) -> None:
        for process in (*self.controllers, *self.workers):
            if process.status is None:
                process.send(signal.SIGCONT)
            process.kill()
        self.front.close()
        self.back.close()
        self.queue.kill()


def _as(url: str, role: str, acl: str | None) -> str:
    """The URL as that user of ``deploy/users.acl``; as it is without one."""
    return url.replace("redis://", f"redis://{role}:change-{role}-password@") if acl else url


@contextmanager
def running_cluster(
    *,
    num_controllers: int = 2,
    num_workers: int = 3,
    is_durable: bool = True,
    server: dict[str, Any] | None = None,
    worker: dict[str, Any] | None = None,
    acl: str | None = None,
    queue_port: int = 0,
) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="lv"))  # tmp_path is too long for a socket
    cluster = Cluster(
        folder,
        num_controllers=num_controllers,
        num_workers=num_workers,
        is_durable=is_durable,
        server=server or {},
        worker=worker or {},
        acl=acl,
        queue_port=queue_port,
    )
    try:
        cluster.revive()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
