"""Every program reports an unusable Redis URL in one sentence, which does not contain the secret."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from llava_wire.redis.keys import PREFIX
from redis.crc import key_slot

from tests.client.cli.command_line import MAIN
from tests.machine_speed import scaled
from tests.processes import free_port
from tests.wire.redis_server import RedisServer, binary

pytestmark = pytest.mark.e2e

NUM_SLOTS = 16384
INVALID = "redis://:sec#ret@host/abc"
PROGRAMS = {
    "server": ["--port", "0"],
    "worker": ["--model", "echo"],
    "doctor": [],
    "top": ["--once"],
    "dlq show": [],
    "up": ["--model", "echo", "--port", "0"],
}


def run(words: str, url: str) -> tuple[int, str]:
    """Run a command with ``--redis-url``. Return its exit status and its output."""
    arguments = [*words.split(), *PROGRAMS[words], "--redis-url", url]
    return run_command(arguments, {})


def run_command(arguments: list[str], variables: Mapping[str, str]) -> tuple[int, str]:
    command = [*MAIN, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_")}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(60),
        env={**environment, **variables},
    )
    return done.returncode, done.stdout + done.stderr


def check_output(output: str) -> None:
    assert "sec" not in output.replace("second", "")
    assert "Traceback" not in output


@pytest.mark.parametrize("words", PROGRAMS)
def test_an_invalid_url_ends_every_program_with_status_2(words: str) -> None:
    status, output = run(words, INVALID)
    assert status == 2
    assert "the database after the host is not a number; expected a number such as /0.\n" in output
    check_output(output)


def test_the_commands_for_api_keys_read_the_url_from_the_environment() -> None:
    status, output = run_command(["keys", "list"], {"LLAVA_REDIS_URL": INVALID})
    assert (status, output.count("\n")) == (2, 1)
    check_output(output)


@pytest.fixture(scope="module")
def foreign_node() -> Iterator[RedisServer]:
    """A node of a cluster that serves all slots except the one of the queue."""
    program = binary("valkey")
    assert program
    folder = Path(tempfile.mkdtemp(prefix="lv"))
    options = f"--cluster-enabled yes --cluster-port {free_port()} --cluster-require-full-coverage no"
    server = RedisServer(program, folder, port=free_port(), options=options)
    server.start()
    slot = key_slot(PREFIX.encode())
    server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, slot - 1, slot + 1, NUM_SLOTS - 1)
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.mark.parametrize(("words", "status"), [("server", 1), ("worker", 69), ("doctor", 69)])
def test_a_url_of_one_cluster_node_is_reported_with_the_remedy(
    foreign_node: RedisServer, words: str, status: int
) -> None:
    found, output = run(words, foreign_node.url)
    assert found == status, output
    assert "The Redis URL names one node of a cluster. Use redis+cluster://." in output
    check_output(output)


@pytest.fixture(scope="module")
def plain_server() -> Iterator[RedisServer]:
    program = binary("valkey")
    assert program
    folder = Path(tempfile.mkdtemp(prefix="lv"))
    server = RedisServer(program, folder, port=free_port())
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("redis+sentinel://:sec#ret@127.0.0.1:{port}/main", "Sentinel did not return the address"),
        ("redis+sentinel://:sec#ret@127.0.0.1:1/main", "no Sentinel process knows a reachable primary"),
        ("redis+cluster://127.0.0.1:{port}", "the cluster did not return the address"),
        ("redis://127.0.0.1:{port}/99", "DB index is out of range"),
    ],
)
def test_a_url_for_another_kind_of_server_is_reported_in_one_sentence(
    plain_server: RedisServer, form: str, reason: str
) -> None:
    status, output = run("doctor", form.format(port=plain_server.port))
    assert (status, output.count("\n")) == (69, 1), output
    assert reason in output
    check_output(output)
