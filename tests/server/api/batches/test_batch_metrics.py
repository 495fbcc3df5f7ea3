"""Batch metrics: the state of running batches and the number of results."""

from __future__ import annotations

from tests.server.batch_requests import create_batch, input_file, request_line, wait_for_end
from tests.server.conftest import OwnStack, Stack
from tests.waiting import wait_until


def test_metrics_show_the_lines_of_a_running_batch_and_its_end(
    own_stack: OwnStack,
) -> None:
    stack = own_stack()

    def num_lines() -> tuple[float, ...]:
        states = ("waiting", "completed", "failed")
        return tuple(stack.server.metric("llava_batch_lines", state=state) for state in states)

    def num_results(outcome: str) -> float:
        return stack.server.metric("llava_batch_lines_ended_total", outcome=outcome)

    batch = create_batch(
        stack.http,
        input_file(
            request_line("a", "hold"), request_line("b", "say yes"), request_line("c", "break internal_error")
        ),
    )
    wait_until(lambda: num_lines() == (1, 1, 1))
    assert stack.server.metric("llava_batches", state="in_progress") == 1
    assert stack.server.metric("llava_batches_ended_total", state="completed") == 0
    stack.worker.release.set()
    wait_for_end(stack.http, batch)
    wait_until(lambda: num_lines() == (0, 0, 0))
    assert stack.server.metric("llava_batches", state="in_progress") == 0
    assert stack.server.metric("llava_batches_ended_total", state="completed") == 1
    assert (num_results("completed"), num_results("failed")) == (2, 1)


def test_a_batch_with_an_invalid_file_counts_as_failed(stack: Stack) -> None:
    before = stack.server.metric("llava_batches_ended_total", state="failed")
    assert create_batch(stack.http, b"not JSON")["status"] == "failed"
    assert stack.server.metric("llava_batches_ended_total", state="failed") == before + 1
    assert stack.server.metric("llava_batch_lines", state="waiting") == 0
