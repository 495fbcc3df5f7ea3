"""JsonFormatter writes one line of JSON per record, regardless of the message content."""

from __future__ import annotations

import json
import logging
import sys

from llava_server.log_format import JsonFormatter


def formatted(message: str, *args: object, **extra: object) -> str:
    record = logging.getLogger("llava_server.test").makeRecord(
        "llava_server.test", logging.WARNING, "f", 1, message, args, None, extra=extra
    )
    return JsonFormatter().format(record)


def test_a_line_is_one_object_with_the_records_fields() -> None:
    line = json.loads(formatted("job %s", "j", fields={"request_id": "r", "status": 200}))
    assert (line["message"], line["level"], line["request_id"], line["status"]) == (
        "job j",
        "warning",
        "r",
        200,
    )
    assert line["time"][10] == "T"


def test_no_message_can_start_a_new_line_or_control_a_terminal() -> None:
    for hostile in ("\n", "\r\n", "\x1b[2J", "\u2028", "\x85", "\x00", '"}\n{"level":"info'):
        text = formatted("received %s", hostile)
        assert text.isascii() and text.isprintable(), hostile
        assert json.loads(text)["message"] == f"received {hostile}"


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError: broken" in json.loads(text)["trace"]
