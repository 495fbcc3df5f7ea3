"""Bodies that are compressed, not UTF-8, not JSON, chunked, or that contain lone surrogates."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from llava_server.api.chat.request import ChatRequest
from llava_server.api.parse import parse_request

from tests.machine_speed import scaled
from tests.server.batch_requests import upload
from tests.server.conftest import Stack, text_of
from tests.server.scripted_worker import MODEL

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
TEXT = json.dumps(BODY).encode()
JSON = {"content-type": "application/json"}
ROUTES = [CHAT, "/v1/responses", "/v1/messages", "/v1/completions", "/v1/embeddings", "/tokenize"]
ROUTES += ["/detokenize", "/v1/messages/count_tokens", "/v1/batches", "/v1/files"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "GZIP"])
def test_a_compressed_body_is_a_415_that_names_the_encoding(stack: Stack, path: str, encoding: str) -> None:
    headers = {**JSON, "content-encoding": encoding}
    response = stack.http.post(path, content=gzip.compress(TEXT), headers=headers)
    body = response.json()
    assert response.status_code == 415
    assert (body["error"]["code"], body.get("type")) == (
        "unsupported_encoding",
        "error" if path.startswith("/v1/messages") else None,
    )
    assert repr(encoding) in body["error"]["message"]
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["identity", "", "Identity", "identity, identity"])
def test_an_identity_encoding_is_accepted(stack: Stack, encoding: str) -> None:
    response = stack.http.post(CHAT, content=TEXT, headers={**JSON, "content-encoding": encoding})
    assert text_of(response) == "yes"


def test_a_chunked_body_is_accepted(stack: Stack) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (TEXT[start : start + 7] for start in range(0, len(TEXT), 7))

    response = stack.http.post(CHAT, content=chunks(), headers=JSON)
    assert response.request.headers["transfer-encoding"] == "chunked"
    assert text_of(response) == "yes"


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        "application/json ; a=b",
        "application/vnd.api+json",
    ],
)
def test_json_media_types_are_accepted(stack: Stack, media_type: str) -> None:
    response = stack.http.post(CHAT, content=TEXT, headers={"content-type": media_type})
    assert text_of(response) == "yes"


@pytest.mark.parametrize(
    "media_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"],
)
def test_media_types_that_a_web_page_can_send_without_cors_are_rejected(
    stack: Stack, media_type: str
) -> None:
    response = stack.http.post(CHAT, content=TEXT, headers={"content-type": media_type} if media_type else {})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert stack.worker.assignments == []


def test_a_byte_order_mark_is_ignored(stack: Stack) -> None:
    response = stack.http.post(CHAT, content=b"\xef\xbb\xbf" + TEXT, headers=JSON)
    assert text_of(response) == "yes"


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf_16_is_a_clear_error(stack: Stack, codec: str) -> None:
    headers = {"content-type": f"application/json; charset={codec}"}
    error = stack.http.post(CHAT, content=TEXT.decode().encode(codec), headers=headers).json()["error"]
    assert error["code"] == "invalid_json"
    assert "UTF-16 or UTF-32" in error["message"]


@pytest.mark.parametrize("text", [b"\xe9", b"\xed\xa0\x80", b"\xff", b"\xf0\x9f\x98"])
def test_invalid_utf_8_is_a_clear_error(stack: Stack, text: bytes) -> None:
    error = stack.http.post(CHAT, content=TEXT.replace(b"yes", text), headers=JSON).json()["error"]
    assert error["code"] == "invalid_json"
    assert f"not valid UTF-8: byte 0x{text[0]:02x} at position" in error["message"]


SURROGATES = {
    r"a\ud83d": "a\ufffd",
    r"\ude00b": "\ufffdb",
    r"\ude00\ud83d": "\ufffd\ufffd",
    r"\ud83d\ude00": "\U0001f600",
    r"\uD83D\uDE00\uD83D": "\U0001f600\ufffd",
    r"\ud83d\ud83d\ude00": "\ufffd\U0001f600",
    r"\\ud83d": r"\ud83d",
    r"\\\ud83d": "\\\ufffd",
    r"\ud83d\\ude00": "\ufffd\\ude00",
    r"\ud83d\n": "\ufffd\n",
}


@pytest.mark.parametrize("escaped", SURROGATES)
def test_lone_surrogates_are_replaced_and_pairs_are_kept(escaped: str) -> None:
    raw = json.dumps(BODY).replace("say yes", escaped).encode()
    message = parse_request(ChatRequest, raw).messages[0]
    assert message.content == SURROGATES[escaped]


def test_every_route_accepts_lone_surrogates(stack: Stack) -> None:
    text = r"\ud83d"
    message = f'[{{"role": "user", "content": "{text}"}}]'
    bodies = {
        CHAT: f'"messages": {message}',
        "/v1/responses": f'"input": "{text}"',
        "/v1/messages": f'"max_tokens": 9, "messages": {message}',
        "/v1/messages/count_tokens": f'"messages": {message}',
        "/v1/completions": f'"prompt": "{text}"',
        "/v1/embeddings": f'"input": "{text}"',
        "/tokenize": f'"prompt": "{text}"',
    }
    for path, fields in bodies.items():
        content = f'{{"model": "{MODEL}", {fields}}}'
        response = stack.http.post(path, content=content, headers=JSON)
        assert response.status_code == 200, (path, response.text)
    line = f'{{"custom_id": "{text}", "method": "POST", "url": "{CHAT}", "body": {TEXT.decode()}}}'
    batch = {"input_file_id": upload(stack.http, line.encode()).json()["id"], "endpoint": CHAT}
    created = stack.http.post("/v1/batches", json={**batch, "completion_window": "24h"})
    assert created.json()["errors"] is None, created.text


def test_other_invalid_escapes_are_still_invalid_json(stack: Stack) -> None:
    for escape in (r"\ud83", r"\ud83d\x", r"\q", "\\"):
        content = TEXT.replace(b"say yes", escape.encode())
        assert stack.http.post(CHAT, content=content, headers=JSON).json()["error"]["code"] == "invalid_json"


def test_surrogates_are_replaced_in_linear_time() -> None:
    raw = json.dumps(BODY).replace("say yes", r"\ud83d" * 500_000).encode()
    start = time.process_time()
    assert parse_request(ChatRequest, raw).messages[0].content == "\ufffd" * 500_000
    assert time.process_time() - start < scaled(5)
