"""``python -m llava_server``, run as a process: startup errors, draining, both ports, and imports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import redis
from llava_server.app import create_app
from llava_server.settings import Settings

from tests.machine_speed import scaled
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

Launch = Callable[..., "Process"]


class Process:
    """A running server process."""

    def __init__(self, url: str, *flags: str) -> None:
        environment = {**os.environ, "LLAVA_REDIS_URL": url, "LLAVA_IMAGE_WORKERS": "1"}
        command = [sys.executable, "-m", "llava_server", "--port", "0", *flags]
        self.popen = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line.startswith("llava-server is listening on http://127.0.0.1:"), line
        self.url = line.split()[-1]

    def wait(self) -> int:
        return self.popen.wait(scaled(60))

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@pytest.fixture
def launch(queue_url: str) -> Iterator[Launch]:
    processes: list[Process] = []

    def start(*flags: str) -> Process:
        processes.append(Process(queue_url, *flags))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def ask(process: Process, text: str) -> httpx2.Response:
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": text}]}
    return httpx2.post(f"{process.url}/v1/chat/completions", json=body, timeout=scaled(60))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_without_open_requests_exits_with_status_0(launch: Launch, number: signal.Signals) -> None:
    process = launch()
    process.popen.send_signal(number)
    assert process.wait() == 0


def test_sigterm_lets_an_open_stream_finish(launch: Launch, worker: ScriptedWorker) -> None:
    process = launch()
    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(ask, process, "hold")
        wait_until(lambda: worker.assignments)
        process.popen.terminate()
        wait_until(lambda: httpx2.get(f"{process.url}/readyz", timeout=scaled(60)).status_code == 503)
        assert httpx2.get(f"{process.url}/livez", timeout=scaled(60)).status_code == 200
        assert ask(process, "say no").json()["error"]["code"] == "shutting_down"
        worker.release.set()
        response = streaming.result()
    assert "done" in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    assert process.wait() == 0


def test_a_stream_that_exceeds_the_drain_timeout_ends_with_an_error_event(
    launch: Launch, worker: ScriptedWorker
) -> None:
    process = launch("--drain-timeout-s", "0.2")
    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(ask, process, "hold")
        wait_until(lambda: worker.assignments)
        process.popen.terminate()
        response = streaming.result()
    assert '"code":"shutting_down"' in response.text
    assert "[DONE]" not in response.text
    assert process.wait() == 0


def test_a_port_in_use_is_a_clear_error(queue_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "llava_server", "--port", str(port), "--redis-url", queue_url],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert f"Port {port} on 127.0.0.1 is already in use" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unavailable_queue_at_startup_is_a_clear_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llava_server", "--port", "0", "--redis-url", "redis://127.0.0.1:1/0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "redis" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_a_queue_that_may_evict_requests_is_rejected_unless_this_is_accepted(
    launch: Launch, queue_url: str
) -> None:
    client = redis.Redis.from_url(queue_url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        command = [sys.executable, "-m", "llava_server", "--port", "0", "--redis-url", queue_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "maxmemory-policy allkeys-lru" in done.stderr
        assert "--allow-eviction" in done.stderr
        accepted = launch("--allow-eviction")
        assert httpx2.get(f"{accepted.url}/livez").status_code == 200
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.close()


def test_a_server_that_has_found_no_worker_yet_rejects_every_model_with_503(launch: Launch) -> None:
    response = ask(launch(), "Hi?")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_worker")
    assert response.headers["retry-after"]


def test_server_imports_neither_torch_nor_the_worker() -> None:
    program = (
        "import sys, llava_server.process_group\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'llava_worker', 'llava_client'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_server_that_listens_collects_garbage(queue_url: str) -> None:
    program = (
        "import gc, os, signal, sys\n"
        "from llava_server.__main__ import main\n"
        "class Output:\n"
        "    def write(self, text):\n"
        "        os.write(1, repr([gc.isenabled(), gc.get_freeze_count() > 10_000]).encode())\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    def flush(self):\n"
        "        pass\n"
        "sys.stdout = Output()\n"
        "main(['--port', '0', '--redis-url', sys.argv[1], '--drain-grace-s', '0'])"
    )
    command = [sys.executable, "-c", program, queue_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[True, True]", done.stderr


def test_the_openapi_document_is_not_built_until_it_is_requested() -> None:
    app = create_app(Settings(auth=False))
    assert app.openapi_schema is None
    assert app.openapi() is app.openapi()


def test_metrics_are_on_the_admin_port_if_there_is_one(launch: Launch, worker: ScriptedWorker) -> None:
    process = launch("--auth", "--admin-port", "0")
    assert process.popen.stdout is not None
    line = process.popen.stdout.readline()
    assert line.startswith("llava-server admin is listening on http://127.0.0.1:"), line
    admin = line.split()[-1]
    wait_until(lambda: httpx2.get(f"{admin}/readyz", timeout=scaled(30)).status_code == 200)
    assert "llava_num_workers" in httpx2.get(f"{admin}/metrics", timeout=scaled(30)).text
    assert httpx2.get(f"{admin}/v1/models", timeout=scaled(30)).status_code == 404
    assert httpx2.get(f"{process.url}/metrics", timeout=scaled(30)).status_code == 401
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_metrics_on_the_api_port_require_a_key(launch: Launch) -> None:
    assert httpx2.get(f"{launch('--auth').url}/metrics", timeout=scaled(30)).status_code == 401
    process = launch("--no-auth")
    assert "llava_queue_up" in httpx2.get(f"{process.url}/metrics", timeout=scaled(30)).text
    assert (
        httpx2.get(f"{launch('--no-auth', '--admin-port', '0').url}/metrics", timeout=scaled(30)).status_code
        == 404
    )


def test_an_admin_port_in_use_is_reported_with_its_flag(queue_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        flags = ["--port", "0", "--admin-port", str(listener.getsockname()[1]), "--redis-url", queue_url]
        command = [sys.executable, "-m", "llava_server", *flags]
        result = subprocess.run(command, capture_output=True, text=True, timeout=scaled(60), check=False)
    assert result.returncode == 2
    assert "--admin-port" in result.stderr
