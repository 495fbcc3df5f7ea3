"""A complete system for fault tests: a queue, and controllers and workers that connect to it through proxies.

Several tests share a cluster. ``restore`` restarts stopped processes between tests.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import redis
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.redis.keys import PERMANENT, PREFIX

from tests.faults.proxy import FaultProxy
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, WorkerProcess
from tests.waiting import wait_until
from tests.wire.redis_server import RedisServer, binary

__all__ = ["Cluster", "running_cluster"]

# Durations for a fast machine. They are scaled up on a slow machine, where processes respond more slowly.
_LEASE_S = 1.0
_HANG_TIMEOUT_S = 3.0
_ORPHAN_GRACE_S = 3.0
_STEP_S = 0.01


class Cluster:
    """The processes of one system.

    Controllers connect to the queue through the proxy ``front``, and workers through the proxy ``back``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_controllers: int,
        num_workers: int,
        is_durable: bool,
        server: Mapping[str, object],
        worker: Mapping[str, object],
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
        self.lease_s = scaled(_LEASE_S)
        shared = {"lease_s": self.lease_s, "hang_timeout_s": scaled(_HANG_TIMEOUT_S)}
        server = {**shared, "orphan_grace_s": scaled(_ORPHAN_GRACE_S), **server}
        worker = {**shared, "echo_step_s": _STEP_S, "echo_faults": True, **worker}
        front, back = _as_user(self.front.url, "server", acl), _as_user(self.back.url, "worker", acl)
        self.controllers = [
            ControllerProcess(front, folder / f"controller-{number}.log", **server)
            for number in range(num_controllers)
        ]
        self.workers = [
            WorkerProcess(back, folder / f"worker-{number}.log", **worker) for number in range(num_workers)
        ]

    @property
    def redis(self) -> redis.Redis:
        return self.queue.client

    @property
    def urls(self) -> list[str]:
        return [controller.url for controller in self.controllers]

    def restore(self) -> None:
        """Restart all stopped processes, remove all faults, and wait until the system is idle."""
        self.front.heal()
        self.back.heal()
        for process in (*self.workers, *self.controllers):
            if process.status is not None:
                process.start()
        wait_until(lambda: all(worker.is_ready for worker in self.workers), "workers")
        wait_until(lambda: all(controller.is_ready for controller in self.controllers), "controllers")
        wait_until(lambda: self.is_idle, "an idle system")
        self.redis.delete(f"{PREFIX}dlq")

    @property
    def is_idle(self) -> bool:
        return not self.key_names("inflight:") and not self.key_names("wait")

    def key_names(self, kind: str = "") -> list[str]:
        return [key.decode() for key in self.redis.scan_iter(f"{PREFIX}{kind}*", count=1000)]

    def job_field(self, job_id: str, name: str) -> str | None:
        value = self.redis.hget(f"{PREFIX}job:{job_id}", name)
        return value.decode() if isinstance(value, bytes) else None

    def worker_of(self, job_id: str) -> WorkerProcess:
        """Return the worker that is running the job."""
        worker_id = self.job_field(job_id, "worker")
        assert worker_id
        (found,) = [worker for worker in self.workers if worker_id in worker.log]
        return found

    def has_moved(self, job_id: str, former: WorkerProcess) -> bool:
        """Return whether a worker other than ``former`` is running the job (False while it is queued)."""
        worker_id = self.job_field(job_id, "worker")
        return bool(worker_id and worker_id not in former.log)

    def num_reaps(self) -> int:
        """Return the total number of calls to ``reap``. Each controller calls it once per second."""
        return sum(int(self.redis.get(name) or 0) for name in self.key_names("beats:"))

    def dead_letters(self) -> list[str]:
        """Return the IDs of the jobs in the dead-letter stream."""
        letters: list[Any] = self.redis.xrange(f"{PREFIX}dlq") or []
        return [fields[b"job"].decode() for _, fields in letters]

    def assert_no_key_leaks(self) -> None:
        """Check that every key except those in ``PERMANENT`` has a TTL."""
        leaks = {key for key in self.key_names() if self.redis.ttl(key) == -1} - set(PERMANENT)
        assert not leaks

    def num_running(self, worker: WorkerProcess) -> float | None:
        """Return the number of running sequences in a worker's heartbeat, or None if it has expired."""
        for key in self.key_names("heartbeat:"):
            packed = self.redis.get(key)
            if key.rpartition(":")[2] in worker.log and isinstance(packed, bytes):
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


def _as_user(url: str, role: str, acl: str | None) -> str:
    """If an ACL is in use, add the credentials for this role from ``deploy/users.acl`` to the URL."""
    return url.replace("redis://", f"redis://{role}:change-{role}-password@") if acl else url


@contextmanager
def running_cluster(
    *,
    num_controllers: int = 2,
    num_workers: int = 3,
    is_durable: bool = True,
    server: Mapping[str, object] | None = None,
    worker: Mapping[str, object] | None = None,
    acl: str | None = None,
    queue_port: int = 0,
) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="lv"))  # tmp_path is too long for a Unix socket
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
        cluster.restore()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
