"""Sentinel and Redis Cluster, each with real server processes, and failovers without a fixed address."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable

from tests.faults.local_streams import NUM_STREAMS, running_streams
from tests.processes import free_port
from tests.waiting import wait_until
from tests.wire.redis_server import SLOW_KINDS, binary

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


class Node:
    """A server process on a TCP port."""

    def __init__(self, program: str, folder: Path, *options: str, sentinel: str = "") -> None:
        self.port, self.cluster_port = free_port(), free_port()
        if "--cluster-enabled" in options:
            files = ("--cluster-config-file", f"{self.port}.nodes")
            options = (*options, *files, "--cluster-port", str(self.cluster_port))
        config = folder / f"{self.port}.conf"
        config.write_text(f"port {self.port}\nbind {HOST}\ndir {folder}\nlogfile ''\nsave ''\n{sentinel}")
        mode = ["--sentinel"] if sentinel else []
        self.process = subprocess.Popen(
            [program, str(config), *mode, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.client = redis.Redis(HOST, self.port)
        wait_until(self._is_ready, "the server start")

    def _is_ready(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False

    def num_other_sentinels(self) -> int:
        reply: Any = self.client.sentinel_master("main")
        return int(reply["num-other-sentinels"])

    def kill(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


class Nodes:
    """Creates nodes of one kind of server, and kills them at the end."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder
        self._nodes: list[Node] = []

    def start(self, *options: str, sentinel: str = "") -> Node:
        node = Node(self._program, self._folder, *options, sentinel=sentinel)
        self._nodes.append(node)
        return node

    def kill(self) -> None:
        for node in self._nodes:
            node.kill()


@pytest.fixture(params=SLOW_KINDS)
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    program = binary(request.param)
    if not program:
        pytest.skip(f"{request.param} is not installed")
    folder = Path(tempfile.mkdtemp(prefix="lv"))
    nodes = Nodes(program, folder)
    yield nodes
    nodes.kill()
    shutil.rmtree(folder)


async def test_streams_survive_an_unplanned_failover_by_sentinel(nodes: Nodes) -> None:
    primary = nodes.start()
    replicas = [nodes.start("--replicaof", HOST, str(primary.port)) for _ in range(2)]
    wait_until(
        lambda: all(node.client.info("replication")["master_link_status"] == "up" for node in replicas),
        "the replicas",
    )
    monitor = f"sentinel monitor main {HOST} {primary.port} 2\nsentinel down-after-milliseconds main 500\n"
    sentinels = [nodes.start(sentinel=monitor + "sentinel failover-timeout main 5000\n") for _ in range(3)]
    wait_until(
        lambda: all(node.num_other_sentinels() == 2 for node in sentinels),
        "the sentinels to find each other",
    )
    hosts = ",".join(f"{HOST}:{node.port}" for node in sentinels)
    async with running_streams(f"redis+sentinel://{hosts}/main") as streams:
        await streams.submit(1)
        expected = await streams.texts()
        await streams.submit(2)
        await streams.has_begun(4 * NUM_STREAMS)
        primary.kill()
        assert await streams.texts() == expected
        await streams.submit(3)
        assert await streams.texts() == expected


async def test_streams_run_on_a_cluster_and_survive_the_failover_of_their_slot(nodes: Nodes) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
    members = [nodes.start(*options) for _ in range(3)]
    replica = nodes.start(*options)
    await create_cluster(members)
    slot = int(members[0].client.execute_command("CLUSTER KEYSLOT", "{lv}:"))
    owner = members[slot * 3 // 16384]
    for node in members:
        replica.client.execute_command("CLUSTER MEET", HOST, node.port, node.cluster_port)
    owner_id = str(owner.client.execute_command("CLUSTER MYID"), "ascii")
    wait_until(
        lambda: owner_id in str(replica.client.execute_command("CLUSTER NODES")), "the replica to know"
    )
    replica.client.execute_command("CLUSTER REPLICATE", owner_id)
    wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up", "the replica")
    other = next(node for node in members if node is not owner)
    async with running_streams(f"redis+cluster://{HOST}:{other.port},{HOST}:{replica.port}") as streams:
        await streams.submit(1)
        expected = await streams.texts()
        await streams.submit(2)
        await streams.has_begun(4 * NUM_STREAMS)
        owner.kill()
        assert await streams.texts() == expected


async def test_the_url_of_one_cluster_node_is_reported_with_a_remedy(nodes: Nodes) -> None:
    members = [nodes.start("--cluster-enabled", "yes") for _ in range(3)]
    await create_cluster(members)
    slot = int(members[0].client.execute_command("CLUSTER KEYSLOT", "{lv}:"))
    other = members[(slot * 3 // 16384 + 1) % 3]
    producer = await JobProducer.connect(f"redis://{HOST}:{other.port}")
    with pytest.raises(QueueUnavailable, match=r"redis\+cluster://"):
        await producer.reap()
    await producer.aclose()


async def create_cluster(members: list[Node]) -> None:
    """Distribute the slots evenly over the nodes, and wait until every node reports a complete cluster."""
    for index, node in enumerate(members):
        first, last = 16384 * index // len(members), 16384 * (index + 1) // len(members) - 1
        node.client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
    for node in members[1:]:
        node.client.execute_command("CLUSTER MEET", HOST, members[0].port, members[0].cluster_port)
    await asyncio.to_thread(
        wait_until,
        lambda: all(node.client.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for node in members),
        "the cluster",
    )
