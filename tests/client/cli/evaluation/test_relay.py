"""The relay between lmms-eval and the servers stores each response and sends no request twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from llava_cli.evaluation.relay import JUDGE, MODEL, Relay, Target
from llava_cli.evaluation.responses_file import ResponsesFile
from llava_client import Client, RetryPolicy
from llava_client.errors import ConfigurationError

from tests.client.scripted_server import TEXT, ScriptedServer, closes_connection, hangs_until, returns_error
from tests.waiting import wait_until

GREEDY = {
    "messages": [{"role": "user", "content": "x"}],
    "model": "served",
    "temperature": 0,
    "max_tokens": 9,
}
SAMPLED = {**GREEDY, "temperature": 0.5}


@dataclass
class Run:
    """One run of the relay, with what it reported."""

    relay: Relay
    errors: list[str | None] = field(default_factory=list)
    num_failures: int = 0

    def post(self, body: dict[str, Any], target: str = MODEL, path: str = "/chat/completions") -> Any:
        response = httpx2.post(self.relay.url(target) + path, json=body)
        return response.json()["choices"][0]["message"]["content"] if response.is_success else None


StartRun = Callable[..., Any]


@pytest.fixture
def start_run(server: ScriptedServer, tmp_path: Path) -> Iterator[StartRun]:
    """Return a function that starts a run, which uses the responses of earlier runs."""
    with Client(server.url, max_retries=2, retry_policy=RetryPolicy(initial_delay_s=0)) as client:

        @contextmanager
        def start(*names: str, model: str = "tiny-llava") -> Iterator[Run]:
            targets = {name: Target(client, model, "run") for name in names or (MODEL, JUDGE)}
            responses = ResponsesFile(tmp_path / "responses.jsonl")

            def fail() -> None:
                run.num_failures += 1

            relay = Relay(targets, responses, on_response=lambda e: run.errors.append(e), on_failure=fail)
            run = Run(relay)
            with relay:
                yield run

        yield start


def test_a_request_is_sent_once_even_in_a_later_run(server: ScriptedServer, start_run: StartRun) -> None:
    for _ in range(2):
        with start_run() as run:
            assert [run.post(GREEDY), run.post(GREEDY)] == [TEXT, TEXT]
            assert run.errors == [None, None]
    assert len(server.chats) == 1
    assert server.last_body == {**GREEDY, "model": "tiny-llava"}


def test_requests_with_other_content_or_another_model_are_sent(
    server: ScriptedServer, start_run: StartRun
) -> None:
    with start_run() as run:
        run.post(GREEDY)
        run.post({**GREEDY, "max_tokens": 10})
    with start_run(model="other") as run:
        run.post(GREEDY)
    assert len(server.chats) == 3


def test_identical_requests_whose_responses_are_sampled_are_each_sent_once(
    server: ScriptedServer, start_run: StartRun
) -> None:
    for _ in range(2):
        with start_run() as run:
            run.post(SAMPLED, JUDGE)
            run.post(SAMPLED, JUDGE, path="")  # some tasks do not append /chat/completions
    assert len(server.chats) == 2


def test_a_response_that_was_only_partly_written_is_requested_with_the_same_idempotency_key(
    server: ScriptedServer, start_run: StartRun, tmp_path: Path
) -> None:
    with start_run() as run:
        run.post(GREEDY)
    path = tmp_path / "responses.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with start_run() as run:
        assert run.post(GREEDY) == TEXT
    first, second = server.chats
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert path.read_bytes().count(b"\n") == 1


def test_a_file_with_other_content_is_reported_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text('{"request": "a", "number": 0, "text": "b", "finish_reason": null}\n{"x": 1}\n')
    with pytest.raises(ConfigurationError, match=r"Line 2 of '.*' is not a response of this command"):
        ResponsesFile(path)


def test_a_rejected_request_counts_as_an_empty_response_and_is_sent_again_by_the_next_run(
    server: ScriptedServer, start_run: StartRun
) -> None:
    server.script(returns_error(400, "The image is too large."))
    with start_run() as run:
        assert run.post(GREEDY) == ""
        assert (run.relay.num_rejected, run.num_failures) == (1, 0)
        assert "The image is too large." in run.errors[0]
    with start_run() as run:
        assert run.post(GREEDY) == TEXT
        assert run.relay.num_rejected == 0


def test_other_errors_end_the_run_after_retries(server: ScriptedServer, start_run: StartRun) -> None:
    server.script(*[closes_connection] * 3)
    with start_run() as run:
        assert run.post(GREEDY) is None
        assert run.num_failures == 1
        assert run.relay.failure is not None
    assert len(server.chats) == 3


def test_a_rejection_by_the_judge_ends_the_run(server: ScriptedServer, start_run: StartRun) -> None:
    server.script(returns_error(400))
    with start_run() as run:
        assert run.post(GREEDY, JUDGE) is None
        assert run.num_failures == 1


def test_a_task_that_requires_a_judge_ends_the_run_if_there_is_none(
    server: ScriptedServer, start_run: StartRun
) -> None:
    with start_run(MODEL) as run:
        assert run.post(GREEDY, JUDGE) is None
        assert "Pass --judge-url" in str(run.relay.failure)
    assert server.chats == []


def post_until_closed(url: str) -> None:
    with suppress(httpx2.TransportError):
        httpx2.post(url, json=GREEDY)


def test_a_run_that_is_interrupted_during_a_request_prints_no_traceback(
    server: ScriptedServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    server.script(hangs_until(released))
    with Client(server.url, max_retries=2, retry_policy=RetryPolicy(initial_delay_s=0)) as client:
        targets = {MODEL: Target(client, "m", "run")}
        responses = ResponsesFile(tmp_path / "responses.jsonl")
        relay = Relay(targets, responses, on_response=print, on_failure=released.clear)
        with relay:
            post = threading.Thread(target=post_until_closed, args=[relay.url(MODEL)])
            post.start()
            wait_until(lambda: server.chats)
    released.set()
    post.join()
    assert capfd.readouterr() == ("", "")
    assert len(responses) == 0


def test_a_request_without_the_token_is_not_sent(server: ScriptedServer, start_run: StartRun) -> None:
    with start_run() as run:
        url = run.relay.url(MODEL).replace(run.relay.token, "guess")
        assert httpx2.post(url, json=GREEDY).status_code == 400
        assert run.num_failures == 0
    assert server.chats == []
