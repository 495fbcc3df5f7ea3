"""Several controllers share one port: all of them serve, survive crashes of each other, and drain."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psutil
import pytest
from llava_client import AsyncClient

from tests.echo import echo_text
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, StartWorker, free_port, started
from tests.waiting import async_wait_until, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NUM_PROCESSES = 2
NUM_STREAMS = 8
MAX_TOKENS = 150


@pytest.fixture
def group(queue_url: str, tmp_path: Path, start_worker: StartWorker) -> Iterator[ControllerProcess]:
    """Two controllers with one worker and two admin ports."""
    start_worker(echo_step_s=0.02, max_num_sequences=NUM_STREAMS)
    group = ControllerProcess(
        queue_url, tmp_path / "group.log", processes=NUM_PROCESSES, admin_port=free_ports(NUM_PROCESSES)
    )
    with started(group):
        wait_until(lambda: len(admin_urls(group)) == NUM_PROCESSES, "both controllers")
        yield group


def free_ports(number: int) -> int:
    """Return the first of several consecutive ports that are free."""
    while True:
        first = free_port()
        with ExitStack() as stack:
            try:
                for port in range(first, first + number):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return first


def admin_urls(group: ControllerProcess) -> list[str]:
    return re.findall(r"admin is listening on (\S+)", group.log)


def metric(admin_url: str, name: str) -> float:
    text = httpx2.get(f"{admin_url}/metrics", timeout=scaled(30)).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def controllers(group: ControllerProcess) -> list[psutil.Process]:
    return psutil.Process(group.pid).children()


async def ask(url: str, number: int) -> str:
    """Return the complete output of a stream, which is resumed if its connection breaks."""
    async with AsyncClient(base_url=url) as client:
        opening = await client.stream(
            f"Story {number}",
            model="echo",
            max_tokens=MAX_TOKENS,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        async with opening as stream:
            return (await stream.answer()).text


async def num_streams(group: ControllerProcess) -> list[float]:
    """Return the number of requests that each controller is processing."""
    return [await asyncio.to_thread(metric, url, "llava_num_open_requests") for url in admin_urls(group)]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llava_server", "--no-auth", "--processes", "2", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=scaled(60))


def test_new_connections_are_distributed_over_all_controllers(group: ControllerProcess) -> None:
    port = int(group.url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        wait_until(
            lambda: sum(metric(url, "llava_open_connections") for url in admin_urls(group)) >= 64,
            "the connections",
        )
        assert min(metric(url, "llava_open_connections") for url in admin_urls(group)) >= 8


def test_metrics_are_served_only_on_the_admin_port_of_each_controller(group: ControllerProcess) -> None:
    assert httpx2.get(f"{group.url}/metrics", timeout=scaled(30)).status_code == 404
    assert all(metric(url, "llava_queue_up") == 1 for url in admin_urls(group))


async def test_streams_survive_the_kill_of_a_controller_which_is_restarted(group: ControllerProcess) -> None:
    streams = [asyncio.ensure_future(ask(group.url, number)) for number in range(NUM_STREAMS)]
    while sum(await num_streams(group)) < NUM_STREAMS:
        assert not any(stream.done() for stream in streams)
    killed = controllers(group)[0]
    killed.kill()
    assert await asyncio.gather(*streams) == [
        echo_text(f"Story {number}", max_tokens=MAX_TOKENS) for number in range(NUM_STREAMS)
    ]
    await async_wait_until(lambda: "controller 0 is ready again" in group.log, "the restart")
    assert killed.pid not in {each.pid for each in controllers(group)}
    assert len(controllers(group)) == NUM_PROCESSES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_all_controllers_drain(group: ControllerProcess, number: signal.Signals) -> None:
    streams = [asyncio.ensure_future(ask(group.url, number)) for number in range(NUM_STREAMS)]
    while sum(await num_streams(group)) < NUM_STREAMS:
        assert not any(stream.done() for stream in streams)
    group.send(number)
    assert await asyncio.gather(*streams) == [
        echo_text(f"Story {number}", max_tokens=MAX_TOKENS) for number in range(NUM_STREAMS)
    ]
    assert await group.async_wait() == 0


async def test_the_controllers_exit_if_their_parent_is_killed(group: ControllerProcess) -> None:
    children = controllers(group)
    group.send(signal.SIGKILL)
    await async_wait_until(
        lambda: not any(child.is_running() for child in children), "the controllers to exit"
    )


def test_a_port_in_use_is_one_sentence(queue_url: str, group: ControllerProcess) -> None:
    port = group.url.rpartition(":")[2]
    done = run("--redis-url", queue_url, "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"llava-server: Port {port} on 127.0.0.1 is already in use.")
    assert done.stderr.count("\n") == 1


def test_an_admin_port_in_use_stops_all_controllers(queue_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        second = listener.getsockname()[1]
        done = run("--redis-url", queue_url, "--port", "0", "--admin-port", str(second - 1))
    assert done.returncode == 2
    assert f"Port {second} on 127.0.0.1 is already in use" in done.stderr
    assert "is listening" not in done.stdout


def test_admin_ports_above_the_highest_port_are_rejected(queue_url: str) -> None:
    done = run("--redis-url", queue_url, "--port", "0", "--admin-port", "65535")
    assert done.returncode == 2
    assert "65535" in done.stderr
    assert "Traceback" not in done.stderr
