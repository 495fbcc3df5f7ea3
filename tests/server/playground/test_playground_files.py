"""The playground's files are served with a strict content security policy and an ETag."""

from __future__ import annotations

import re
from importlib.resources import files

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
