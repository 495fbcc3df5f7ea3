"""Traces of batches, whose lines are processed in the background once the batch has been created."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.e2e.collector import Collector, Span
from tests.e2e.traced_system import System
from tests.server.batch_requests import create_batch, input_file, request_line, wait_for_end
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

SECRET = "rutabaga"


def test_each_batch_line_has_a_trace_linked_to_the_request_that_created_the_batch(
    collector: Collector, system: Callable[..., System], trace: str
) -> None:
    fields = {"model": "echo", "max_tokens": 5, "ignore_eos": True}
    data = input_file(
        request_line("a", SECRET, **fields), request_line("b", SECRET, **{**fields, "model": SECRET})
    )
    stack = system()
    stack.worker()
    with stack.client(trace) as http:
        batch = wait_for_end(http, create_batch(http, data))
    good, bad = wait_for_batch_line_spans(collector, batch, 2)
    [creation] = [span for span in collector.named("POST /v1/batches") if span.trace_id == trace]
    assert good.links == bad.links == [(trace, creation.span_id)]
    assert good.trace_id not in (trace, bad.trace_id)
    assert good.parent == bad.parent == ""

    spans = collector.trace(good.trace_id, 6)
    assert spans["submit"].parent == good.span_id
    assert spans["chat echo"].parent == spans["submit"].span_id
    assert spans["decode"].ended <= good.ended
    assert "error.type" not in good.attributes
    assert bad.attributes["error.type"] == "model_not_found"
    assert SECRET.encode() not in collector.raw


def test_without_otel_a_batch_has_no_spans_and_no_trace_field(
    collector: Collector, system: Callable[..., System], queue_url: str, trace: str
) -> None:
    stack = system(otel=False)
    worker = stack.worker()
    with stack.client(trace) as http:
        batch = wait_for_end(
            http, create_batch(http, input_file(request_line("a", "hello", model="echo", max_tokens=5)))
        )
    assert batch["request_counts"]["completed"] == 1
    assert b"trace" not in stored_batch(queue_url)
    worker.send(signal.SIGTERM)
    wait_until(lambda: worker.status == 0)  # the worker sends any pending spans before it exits
    assert not batch_line_spans(collector, batch)


def batch_line_spans(collector: Collector, batch: dict[str, Any]) -> list[Span]:
    """Return the spans of the batch's lines, in input order."""
    spans = [
        span for span in collector.named("batch line") if span.attributes["llava.batch.id"] == batch["id"]
    ]
    return sorted(spans, key=lambda span: span.attributes["llava.line"])


def wait_for_batch_line_spans(collector: Collector, batch: dict[str, Any], num_lines: int) -> list[Span]:
    """Wait until the collector has received the spans of all lines, and return these spans."""
    wait_until(lambda: len(batch_line_spans(collector, batch)) == num_lines)
    return batch_line_spans(collector, batch)


def stored_batch(url: str) -> bytes:
    """Return the content of the only batch in the queue."""
    with redis.Redis.from_url(url) as queue:
        [key] = queue.scan_iter("{lv}:batch:*")
        return b"".join(queue.hvals(key))
