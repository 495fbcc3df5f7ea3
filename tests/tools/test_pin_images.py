"""tools/pin_images.py, against a registry with token authentication on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pin_images
import pytest

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
OLD, NEW = "0" * 64, "1" * 64


class Registry(ThreadingHTTPServer):
    """A registry with one manifest for all repositories. Each repository requires its own token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.manifest = b'{"schemaVersion": 2}'
        self.claimed_digest: str | None = None
        self.paths: list[str] = []

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            (scope,) = parse_qs(url.query)["scope"]
            return self._send(200, json.dumps({"token": f"for {scope}"}).encode())
        repository = url.path.removeprefix("/v2/").partition("/manifests/")[0]
        scope = f"repository:{repository}:pull"
        if self.headers["authorization"] != f"Bearer for {scope}":
            challenge = f'Bearer realm="{self.server.url}/token",service="test",scope="{scope}"'
            return self._send(401, b"", {"www-authenticate": challenge})
        self.server.paths.append(url.path)
        if "missing" in repository:
            return self._send(404, b"")
        digest = self.server.claimed_digest or self.server.digest
        return self._send(200, self.server.manifest, {"docker-content-digest": digest})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        thread = threading.Thread(target=registry.serve_forever, args=(0.01,))
        thread.start()
        yield registry
        registry.shutdown()
        thread.join()


@pytest.fixture
def compose(tmp_path: Path) -> Path:
    """A copy of the compose file with one outdated digest and one image without a digest."""
    text = COMPOSE.read_text("utf-8")
    valkey, python = pin_images.ENTRY.finditer(text)
    text = text.replace(f"@{python['digest']}", "").replace(valkey["digest"], f"sha256:{OLD}")
    path = tmp_path / "docker-compose.yml"
    path.write_text(text)
    return path


def run(compose: Path, registry: Registry, *arguments: str) -> int:
    return pin_images.main([*arguments, "--registry", registry.url], compose)


def test_every_image_gets_the_digest_of_its_tag(compose: Path, registry: Registry) -> None:
    before = compose.read_text("utf-8")
    assert run(compose, registry) == 0
    assert registry.paths == [
        "/v2/valkey/valkey/manifests/9.1.2-alpine",
        "/v2/library/python/manifests/3.13.14-slim-trixie",
    ]
    after = compose.read_text("utf-8")
    assert [entry["digest"] for entry in pin_images.ENTRY.finditer(after)] == [registry.digest] * 2
    expected = before.replace(f"sha256:{OLD}", registry.digest)
    assert after == expected.replace("3.13.14-slim-trixie\n", f"3.13.14-slim-trixie@{registry.digest}\n")


def test_a_check_reports_tags_that_moved_and_changes_nothing(
    compose: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    before = compose.read_text("utf-8")
    assert run(compose, registry, "--check") == 1
    assert compose.read_text("utf-8") == before
    assert f"valkey/valkey:9.1.2-alpine@{registry.digest}" in capsys.readouterr().out
    run(compose, registry)
    assert run(compose, registry, "--check") == 0


def test_a_manifest_with_another_digest_than_reported_is_rejected(
    compose: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    before = compose.read_text("utf-8")
    registry.claimed_digest = f"sha256:{NEW}"
    assert run(compose, registry) == 1
    assert "but the manifest has" in capsys.readouterr().err
    assert compose.read_text("utf-8") == before


def test_an_unknown_image_is_reported(
    compose: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    compose.write_text(compose.read_text("utf-8").replace("valkey/valkey:", "valkey/missing:"))
    assert run(compose, registry) == 1
    assert "valkey/missing/manifests/9.1.2-alpine: status 404" in capsys.readouterr().err


def test_an_unreachable_registry_is_reported_in_one_line(
    compose: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pin_images.main(["--registry", "http://127.0.0.1:1"], compose) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("python", ("https://registry-1.docker.io", "library/python")),
        ("valkey/valkey", ("https://registry-1.docker.io", "valkey/valkey")),
        ("ghcr.io/a/b", ("https://ghcr.io", "a/b")),
        ("localhost:5000/a", ("https://localhost:5000", "a")),
    ],
)
def test_repositories_are_located_as_docker_does(repository: str, expected: tuple[str, str]) -> None:
    reference = pin_images.Reference.parse(repository, "1")
    assert (reference.registry, reference.repository) == expected
