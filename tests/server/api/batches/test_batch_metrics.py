"""/metrics: how batches stand while they run, and what they came to."""

from __future__ import annotations

from collections.abc import Callable

from tests.server.batch_kit import begin, ended, line, lines
from tests.server.conftest import Stack
from tests.waiting import wait_until


def test_metrics_show_a_running_batch_line_by_line_and_then_its_end(
    own_stack: Callable[..., Stack],
) -> None:
    stack = own_stack()

    def standing() -> tuple[float, ...]:
        states = ("waiting", "completed", "failed")
        return tuple(stack.server.metric("llava_batch_lines", state=state) for state in states)

    def written(outcome: str) -> float:
        return stack.server.metric("llava_batch_lines_ended_total", outcome=outcome)

    batch = begin(
        stack.http, lines(line("a", "hold"), line("b", "say yes"), line("c", "break internal_error"))
    )
    wait_until(lambda: standing() == (1, 1, 1))
    assert stack.server.metric("llava_batches", state="in_progress") == 1
    assert stack.server.metric("llava_batches_ended_total", state="completed") == 0
    stack.worker.release.set()
    ended(stack.http, batch)
    wait_until(lambda: standing() == (0, 0, 0))
    assert stack.server.metric("llava_batches", state="in_progress") == 0
    assert stack.server.metric("llava_batches_ended_total", state="completed") == 1
    assert (written("completed"), written("failed")) == (2, 1)


def test_a_batch_that_is_refused_counts_as_failed_and_has_no_lines_waiting(stack: Stack) -> None:
    before = stack.server.metric("llava_batches_ended_total", state="failed")
    assert begin(stack.http, b"no json")["status"] == "failed"
    assert stack.server.metric("llava_batches_ended_total", state="failed") == before + 1
    assert stack.server.metric("llava_batch_lines", state="waiting") == 0
