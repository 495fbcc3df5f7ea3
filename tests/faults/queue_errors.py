"""States in which a Redis server replies to commands with errors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import psutil
import redis

from tests.processes import free_port
from tests.waiting import wait_until
from tests.wire.redis_server import RedisServer

__all__ = ["QUEUE_ERRORS"]

ROLES = ("server", "worker")
_LOOP = "while true do end"


@contextmanager
def without_replica(queue: RedisServer) -> Iterator[None]:
    """Require a replica, which is missing: NOREPLICAS."""
    queue.client.config_set("min-replicas-to-write", 1)
    yield
    queue.client.config_set("min-replicas-to-write", 0)


@contextmanager
def after_failed_save(queue: RedisServer) -> Iterator[None]:
    """Kill a background save: MISCONF."""
    client = queue.client
    client.config_set("save", "3600 1")
    client.config_set("rdb-key-save-delay", 1_000_000)
    client.bgsave()
    for child in psutil.Process(queue.pid).children():
        child.kill()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "the failed save")
    yield
    client.config_set("rdb-key-save-delay", 0)
    client.config_set("save", "")


@contextmanager
def as_replica(queue: RedisServer) -> Iterator[None]:
    """Make the server a replica of an unreachable host: UNBLOCKED and READONLY."""
    queue.client.replicaof("127.0.0.1", free_port())
    yield
    queue.client.replicaof("NO", "ONE")


@contextmanager
def during_script(queue: RedisServer) -> Iterator[None]:
    """Run a script of another client that does not end: BUSY."""
    queue.client.config_set("busy-reply-threshold", 100)

    def loop() -> None:
        with queue.new_client() as client, contextlib.suppress(redis.ResponseError):  # until it is killed
            client.eval(_LOOP, 0)

    other = threading.Thread(target=loop)
    other.start()
    wait_until(lambda: _is_busy(queue), "the script")
    yield
    queue.client.script_kill()
    other.join()


def _is_busy(queue: RedisServer) -> bool:
    try:
        queue.client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


@contextmanager
def without_permissions(queue: RedisServer) -> Iterator[None]:
    """Revoke the permission to run scripts: NOPERM."""
    for role in ROLES:
        queue.client.execute_command("ACL", "SETUSER", role, "-eval", "-evalsha")
    yield
    for role in ROLES:
        queue.client.execute_command("ACL", "SETUSER", role, "+eval", "+evalsha")


@contextmanager
def without_permission_to_write(queue: RedisServer) -> Iterator[None]:
    """Revoke the permission to write. Scripts then fail with an error reply that has no word of its own."""
    users = [str(line).split()[1:] for line in queue.client.acl_list()]
    rules = {name: each for name, *each in users}
    for role in ROLES:
        queue.client.execute_command("ACL", "SETUSER", role, "-@write")
    yield
    for role in ROLES:
        queue.client.execute_command("ACL", "SETUSER", role, *rules[role])


@contextmanager
def with_other_passwords(queue: RedisServer) -> Iterator[None]:
    """Change the passwords and close all connections: WRONGPASS."""
    for role in ROLES:
        queue.client.execute_command("ACL", "SETUSER", role, "resetpass", ">other")
        queue.client.execute_command("CLIENT", "KILL", "USER", role)
    yield
    for role in ROLES:
        queue.client.execute_command("ACL", "SETUSER", role, "resetpass", f">change-{role}-password")


@contextmanager
def out_of_memory(queue: RedisServer) -> Iterator[None]:
    """Reach the memory limit: OOM."""
    queue.client.config_set("maxmemory", 1)
    yield
    queue.client.config_set("maxmemory", 0)


QUEUE_ERRORS: Mapping[str, Callable[[RedisServer], AbstractContextManager[None]]] = {
    "NOREPLICAS": without_replica,
    "MISCONF": after_failed_save,
    "READONLY": as_replica,
    "BUSY": during_script,
    "NOPERM": without_permissions,
    "ERR": without_permission_to_write,
    "WRONGPASS": with_other_passwords,
    "OOM": out_of_memory,
}
