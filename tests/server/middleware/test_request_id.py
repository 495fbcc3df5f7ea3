"""RequestIdMiddleware: the request ID in the response, and the request's log line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from llava_server.log_format import JsonFormatter

from tests.server.api_key_cli import bearer, chat_with_key
from tests.server.conftest import OwnStack, Stack
from tests.server.image_files import part
from tests.waiting import wait_until

KEY = "key-of-tenant-a"


def test_an_invalid_request_id_is_replaced(stack: Stack) -> None:
    for given in ("a" * 65, "with space", "semi;colon", "ümlaut".encode().decode("latin-1"), ""):
        response = stack.http.get("/livez", headers=[(b"x-request-id", given.encode("latin-1"))])
        assert re.fullmatch(r"req-[0-9a-f]{24}", response.headers["x-request-id"]), given


def test_a_valid_request_id_is_used_in_header_and_error(stack: Stack) -> None:
    response = stack.http.get("/nowhere", headers={"x-request-id": "my-id_1"})
    assert response.headers["x-request-id"] == response.json()["error"]["request_id"] == "my-id_1"


def test_the_log_line_has_the_requests_ids_and_no_content(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    response = stack.chat("say canary")
    request_id = response.headers["x-request-id"]

    def lines() -> list[Any]:
        return [
            json.loads(JsonFormatter().format(record))
            for record in caplog.records
            if getattr(record, "fields", {}).get("request_id") == request_id
        ]

    (line,) = wait_until(lines)  # the line is written after the response
    assert (line["route"], line["status"], line["error"]) == ("/v1/chat/completions", 200, "-")
    assert line["job_id"] == response.json()["id"]
    assert "canary" not in json.dumps(line)


def test_logs_contain_no_prompts_keys_or_images(
    own_stack: OwnStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    stack = own_stack(api_keys=(KEY,))
    canary, url = "canary-in-the-prompt", stack.server.url
    chat_with_key(url, KEY, f"say {canary}")
    chat_with_key(url, KEY, [{"type": "text", "text": canary}, part(f"data:image/png;base64,{canary}")])
    chat_with_key(url, KEY, "refuse internal_error")
    stack.http.post("/v1/chat/completions", content=json.dumps({"messages": canary}), headers=bearer(KEY))

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("llava_")]

    wait_until(lambda: sum("/v1/chat/completions" in line for line in lines()) == 4)
    assert any("job_id=chatcmpl-" in line for line in lines())
    assert any("error=invalid_image" in line for line in lines())
    assert not [line for line in lines() if canary in line or KEY in line]
