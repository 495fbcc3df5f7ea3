"""Log lines for machines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from llava_server.log_format import JsonFormatter

from tests.server.conftest import Stack
from tests.waiting import wait_until


def formatted(message: str, *args: object, **extra: object) -> str:
    record = logging.getLogger("llava_server.test").makeRecord(
        "llava_server.test", logging.WARNING, "f", 1, message, args, None, extra=extra
    )
    return JsonFormatter().format(record)


def test_a_line_is_one_object_with_its_fields() -> None:
    line = json.loads(formatted("job %s", "j", fields={"request_id": "r", "status": 200}))
    assert (line["message"], line["level"], line["request_id"], line["status"]) == (
        "job j",
        "warning",
        "r",
        200,
    )
    assert line["time"][10] == "T"


@pytest.mark.parametrize("nasty", ["\n", "\r\n", "\x1b[2J", "\u2028", "\x85", "\x00", '"}\n{"level":"info'])
def test_nothing_in_a_message_begins_another_line_or_moves_a_terminal(nasty: str) -> None:
    text = formatted("said %s", nasty)
    assert text.isascii() and text.isprintable()
    assert json.loads(text)["message"] == f"said {nasty}"


def test_a_trace_stays_on_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError: broken" in json.loads(text)["trace"]


def test_a_requests_line_has_its_ids_and_nothing_that_was_said(
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

    (line,) = wait_until(lines)  # written behind the answer
    assert (line["route"], line["status"], line["error"]) == ("/v1/chat/completions", 200, "-")
    assert line["job_id"] == response.json()["id"]
    assert "canary" not in json.dumps(line)
