"""nginx accepts the configuration in docs/deploy/compose.md and forwards streams, uploads and errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.processes import free_port
from tests.server.conftest import Stack, running_stack
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
OPENSSL = shutil.which("openssl")
DOCUMENT = Path(__file__).parents[2] / "docs" / "deploy" / "compose.md"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (NGINX and OPENSSL), reason="nginx or openssl is not installed"),
]


def documented_blocks() -> list[str]:
    """Return the site and the settings of nginx.conf, as in the documentation."""
    blocks = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    return blocks


def write_configuration(folder: Path, port: int, server_url: str) -> Path:
    site, main = documented_blocks()
    changes = {
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "127.0.0.1:8000": server_url.removeprefix("http://"),
        "/etc/nginx/": f"{folder}/",
    }
    for old, new in changes.items():
        assert old in site
        site = site.replace(old, new)
    http = f"http {{\naccess_log off;\nclient_body_temp_path {folder}/body;\n{site}}}\n"
    path = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""  # otherwise, root's nginx cannot write to the folder
    path.write_text(f"{user}daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n{main}\n{http}")
    return path


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_redis() as url, running_stack(url) as stack:
        yield stack


@pytest.fixture
def proxy(stack: Stack, tmp_path: Path) -> Iterator[httpx2.Client]:
    with running_nginx(tmp_path, stack.server.url) as http:
        yield http


@contextmanager
def running_nginx(folder: Path, server_url: str) -> Iterator[httpx2.Client]:
    """Yield a client of nginx, which forwards to the server."""
    assert NGINX and OPENSSL
    port = free_port()
    files = ("-keyout", f"{folder}/llava.key", "-out", f"{folder}/llava.crt")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost")
    subprocess.run((OPENSSL, "req", "-x509", "-nodes", *kind, *files), check=True, capture_output=True)
    command = (NGINX, "-p", str(folder), "-c", str(write_configuration(folder, port, server_url)))
    limits = httpx2.Limits(max_connections=None)
    process = subprocess.Popen(command)
    try:
        with httpx2.Client(base_url=f"https://127.0.0.1:{port}", verify=False, limits=limits) as http:
            wait_until(lambda: is_serving(http) or process.poll() is not None, "nginx")
            assert process.poll() is None
            yield http
    finally:
        process.terminate()
        process.wait(scaled(30))


def is_serving(http: httpx2.Client) -> bool:
    try:
        return http.get("/livez").status_code == 200
    except httpx2.TransportError:
        return False


def test_streams_are_not_buffered(proxy: httpx2.Client, stack: Stack) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}], "stream": True}
    stack.worker.release.clear()
    with proxy.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        assert "chat.completion.chunk" in next(lines)
        stack.worker.release.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_large_bodies_and_errors_are_forwarded(proxy: httpx2.Client) -> None:
    file = {"file": ("requests.jsonl", b" " * (24 << 20))}
    uploaded = proxy.post("/v1/files", files=file, data={"purpose": "batch"})
    assert uploaded.json()["bytes"] == 24 << 20
    refused = proxy.post("/v1/chat/completions", json={"model": MODEL})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


class HeaderEcho(BaseHTTPRequestHandler):
    """Responds with the request's headers."""

    def do_GET(self) -> None:
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing to stderr."""


def test_a_client_cannot_choose_the_address_that_the_server_sees(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), HeaderEcho) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            with running_nginx(tmp_path, f"http://127.0.0.1:{server.server_port}") as http:
                headers = http.get("/livez", headers={"X-Forwarded-For": "203.0.113.7"}).json()
        finally:
            server.shutdown()
    assert (headers["X-Forwarded-For"], headers["Host"]) == ("127.0.0.1", "127.0.0.1")


def test_a_client_has_at_most_64_open_requests(proxy: httpx2.Client, stack: Stack) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}], "stream": True}
    with ExitStack() as streams:
        stack.worker.release.clear()
        statuses = [
            streams.enter_context(proxy.stream("POST", "/v1/chat/completions", json=body)).status_code
            for _ in range(65)
        ]
        stack.worker.release.set()
    assert statuses == [200] * 64 + [429]


def test_nftables_accepts_the_documented_rules(tmp_path: Path) -> None:
    nft = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if nft is None:
        pytest.skip("nft is not installed")
    [rules] = re.findall(r"```nftables\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    (tmp_path / "rules").write_text(rules)
    checked = subprocess.run((nft, "--check", "--file", tmp_path / "rules"), capture_output=True, text=True)
    if "Operation not permitted" in checked.stderr:
        pytest.skip("checking rules requires root")
    assert (checked.returncode, checked.stderr) == (0, "")
