"""With --otel, traces span the caller, the controller, the queue and the worker."""

from __future__ import annotations

import base64
import io
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import redis
from PIL import Image

from tests.e2e.collector import Collector
from tests.e2e.traced_system import CALLER, System, body, within
from tests.machine_speed import scaled
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis

pytestmark = pytest.mark.e2e

CHAT = "POST /v1/chat/completions"
SECRET = "rutabaga"


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system shared by all tests that only send requests. Each test uses its own trace."""
    with running_redis() as url:
        system = System(url, tmp_path_factory.mktemp("traced"), otel=True)
        system.worker()
        yield system
        system.stop()


def image_url() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_a_request_has_one_trace_from_its_caller_to_its_last_token(
    collector: Collector, traced: System, trace: str
) -> None:
    parts = [{"type": "image_url", "image_url": {"url": image_url()}}, {"type": "text", "text": SECRET}]
    response = traced.chat(parts, trace, max_tokens=7, ignore_eos=True)
    assert response.status_code == 200
    spans = collector.trace(trace, 8)

    request, whole, submit = spans[CHAT], spans["chat echo"], spans["submit"]
    prefill, decode, queue = spans["prefill"], spans["decode"], spans["queue"]
    assert request.parent == CALLER
    for name in ("images", "submit", "first event"):
        assert spans[name].parent == request.span_id
    assert whole.parent == queue.parent == submit.span_id
    assert prefill.parent == decode.parent == whole.span_id
    assert {span.service for span in (request, submit)} == {"llava-server"}
    assert {span.service for span in (whole, prefill, decode, queue)} == {"llava-worker"}
    assert queue.ended == whole.began <= prefill.began <= prefill.ended <= decode.ended <= whole.ended

    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/v1/chat/completions"
    assert request.attributes["gen_ai.response.id"] == response.json()["id"]
    assert whole.attributes["gen_ai.usage.input_tokens"] == response.json()["usage"]["prompt_tokens"]
    assert {span.attributes["gen_ai.usage.output_tokens"] for span in (whole, decode)} == {7}
    assert whole.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert whole.attributes["gen_ai.operation.name"] == "chat"
    assert whole.attributes["gen_ai.request.model"] == "echo"
    assert prefill.attributes["llava.images"] == spans["images"].attributes["llava.num.images"] == 1
    assert prefill.attributes["gen_ai.usage.cache_read.input_tokens"] == 0


def test_spans_contain_no_prompt_or_response_text(collector: Collector, traced: System, trace: str) -> None:
    response = traced.chat(f"the word is {SECRET}", trace, max_tokens=30, ignore_eos=True).json()
    collector.trace(trace, 7)
    assert b"gen_ai.usage.output_tokens" in collector.raw
    assert SECRET.encode() not in collector.raw
    assert response["choices"][0]["message"]["content"][:12].encode() not in collector.raw


def test_spans_of_a_rejected_request_have_its_error_code_but_no_text(
    collector: Collector, traced: System, trace: str
) -> None:
    """The worker rejects the request, because the echo model does not support grammars."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": SECRET}}}
    assert traced.chat("hello", trace, response_format=schema).status_code == 400
    spans = collector.trace(trace, 6)
    request, whole = spans[CHAT], spans["chat echo"]
    assert request.attributes["http.response.status_code"] == 400
    assert request.attributes["error.type"]
    assert not request.is_error  # a 4xx response is not a server error
    assert whole.is_error
    assert whole.attributes["error.type"] == "invalid_request"
    assert SECRET.encode() not in collector.raw


def test_the_idempotency_key_applies_across_traces(collector: Collector, traced: System, trace: str) -> None:
    other = secrets.token_hex(16)
    request_body = body("hello", max_tokens=5)
    responses = [
        traced.http.post(
            "/v1/chat/completions", json=request_body, headers={**within(trace_id), "idempotency-key": "once"}
        )
        for trace_id in (trace, other)
    ]
    assert [response.status_code for response in responses] == [200, 200]
    assert responses[0].json()["id"] == responses[1].json()["id"]
    assert "chat echo" in collector.trace(trace, 7)
    assert "chat echo" not in collector.trace(other, 3)


def test_a_request_without_a_trace_starts_one(collector: Collector, traced: System) -> None:
    response = traced.http.post("/v1/chat/completions", json=body("hello", max_tokens=5))
    [request] = wait_until(
        lambda: [
            span
            for span in collector.named(CHAT)
            if span.attributes.get("gen_ai.response.id") == response.json()["id"]
        ]
    )
    assert request.parent == ""


def test_an_unsampled_trace_is_not_recorded(collector: Collector, traced: System, trace: str) -> None:
    unsampled = {"traceparent": f"00-{trace}-{CALLER}-00"}
    assert traced.http.post("/v1/chat/completions", json=body("a"), headers=unsampled).status_code == 200
    later = secrets.token_hex(16)
    traced.chat("b", later)
    collector.trace(later, 7)
    assert not [span for span in collector.spans if span.trace_id == trace]


def test_a_resumed_response_has_one_trace_with_spans_of_both_workers(
    collector: Collector, system: Callable[..., System], trace: str
) -> None:
    stack = system()
    first = stack.worker(echo_step_s=0.02)
    request_body = body("write", stream=True, max_tokens=150, ignore_eos=True)
    with stack.http.stream(
        "POST", "/v1/chat/completions", json=request_body, headers=within(trace)
    ) as response:
        lines = response.iter_lines()
        next(lines)
        first.send(signal.SIGTERM)
        wait_until(lambda: first.status is not None)  # the worker's last pull takes up to one second
        stack.worker()
        assert "data: [DONE]" in list(lines)
    spans = collector.grouped(trace, 10)
    drained, resumed = sorted(spans["chat echo"], key=lambda span: span.began)
    assert drained.parent == resumed.parent == spans["submit"][0].span_id
    assert (drained.events, resumed.events) == (["let go"], ["resumed"])
    assert drained.attributes["llava.worker.id"] != resumed.attributes["llava.worker.id"]
    assert drained.attributes["gen_ai.usage.output_tokens"] < 150
    assert resumed.attributes["gen_ai.usage.output_tokens"] == 150
    assert len(spans["queue"]) == 1


@pytest.mark.parametrize("is_on", [True, False])
def test_spans_and_the_trace_field_exist_only_with_otel(
    collector: Collector, system: Callable[..., System], queue_url: str, trace: str, is_on: bool
) -> None:
    stack = system(otel=is_on)
    worker = stack.worker()
    assert stack.chat("hello", trace, max_tokens=5).status_code == 200
    [job] = jobs(queue_url)
    if is_on:
        assert job["trace"] == f"00-{trace}-{collector.trace(trace, 7)['submit'].span_id}-01"
        return
    worker.send(signal.SIGTERM)
    wait_until(lambda: worker.status == 0)  # the worker sends any pending spans before it exits
    assert "trace" not in job
    assert not [span for span in collector.spans if span.trace_id == trace]


def test_an_unreachable_collector_does_not_affect_responses(
    monkeypatch: pytest.MonkeyPatch, system: Callable[..., System], trace: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    stack = system()
    stack.worker()
    assert stack.chat("hello", trace, max_tokens=5).status_code == 200


@pytest.mark.parametrize("module", ["llava_server", "llava_worker"])
def test_otel_without_its_package_is_reported_with_the_install_command(module: str, queue_url: str) -> None:
    program = (
        "import sys, runpy; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None; "
        f"sys.argv = ['x', '--otel', '--redis-url', {queue_url!r}]; "
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=scaled(60)
    )
    assert ended.returncode in (1, 2)
    assert "pip install 'llava-serve[otel]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("module", ["llava_server.app", "llava_worker.worker", "llava_wire.otel_setup"])
def test_opentelemetry_is_not_imported_without_tracing(module: str) -> None:
    # The Redis client may import other parts of OpenTelemetry.
    prefixes = ("opentelemetry.sdk.trace", "opentelemetry.exporter")
    program = f"import {module}, sys; print([name for name in sys.modules if name.startswith({prefixes})])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def jobs(url: str) -> list[dict[str, str]]:
    """Return each job in the queue as a dictionary of its fields."""
    with redis.Redis.from_url(url) as queue:
        return [
            {name.decode(): value.decode(errors="replace") for name, value in queue.hgetall(key).items()}
            for key in queue.scan_iter("{lv}:job:*")
        ]
