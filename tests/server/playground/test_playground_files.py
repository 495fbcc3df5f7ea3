"""The playground's files are served with a strict content security policy and an ETag."""

from __future__ import annotations

import re
from importlib.resources import files

import httpx2
import pytest

from tests.server.conftest import Stack


def test_page_has_a_strict_content_security_policy(stack: Stack) -> None:
    response = stack.http.get("/")
    policy = response.headers["content-security-policy"]
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'self'; img-src 'self' data: blob:" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_every_file_that_the_page_references_is_served_with_its_type(stack: Stack) -> None:
    names = set(re.findall(r'(?:src|href)="(/playground/[^"]+)"', stack.http.get("/").text))
    assert names
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".webp": "image/webp"}
    for name in names:
        response = stack.http.get(name)
        assert response.status_code == 200, name
        assert response.headers["content-type"].startswith(types["." + name.rpartition(".")[2]])


def test_unchanged_file_returns_304(stack: Stack) -> None:
    etag = stack.http.get("/").headers["etag"]
    assert stack.http.get("/", headers={"if-none-match": etag}).status_code == 304
    assert stack.http.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_a_file_is_compressed_only_for_clients_that_accept_gzip(stack: Stack) -> None:
    def fetch(encoding: str) -> httpx2.Response:
        return stack.http.get("/playground/app.js", headers={"accept-encoding": encoding})

    plain = fetch("identity")
    assert "content-encoding" not in plain.headers
    for encoding in ("gzip", "deflate, GZIP;q=0.5", "br, gzip ; q=1.0"):
        compressed = fetch(encoding)
        assert compressed.headers["content-encoding"] == "gzip"
        assert int(compressed.headers["content-length"]) < len(plain.content) / 2
        assert compressed.content == plain.content
        assert compressed.headers["vary"] == plain.headers["vary"] == "accept-encoding"
        assert compressed.headers["etag"] != plain.headers["etag"]
    for encoding in ("", "br", "gzip;q=0", "gzip; q=0.000"):
        assert "content-encoding" not in fetch(encoding).headers


def test_an_etag_is_valid_only_for_its_encoding(stack: Stack) -> None:
    etag = stack.http.get("/", headers={"accept-encoding": "gzip"}).headers["etag"]
    for encoding, status in (("gzip", 304), ("identity", 200)):
        headers = {"accept-encoding": encoding, "if-none-match": etag}
        assert stack.http.get("/", headers=headers).status_code == status


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e/settings.py", "index.html%00"])
def test_other_files_are_not_served(stack: Stack, name: str) -> None:
    assert stack.http.get(f"/playground/{name}").status_code == 404


def test_no_module_can_turn_text_into_html_or_code() -> None:
    """Text from models, files and errors can then not become active content, whatever it contains."""
    sinks = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc"
        r"|setHTML|\beval\b|new Function|javascript:|setTimeout\([\"'`]"
    )
    modules = [
        entry for entry in (files("llava_server") / "playground").iterdir() if entry.name.endswith(".js")
    ]
    assert len(modules) > 20
    assert [entry.name for entry in modules if sinks.search(entry.read_text())] == []
