"""The progress line of a load test, shown only if stderr is a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from llava_cli.bench import Plan, Sample, percentile
from llava_cli.bench.svg_plot import duration

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Progress"]


class Progress:
    """A context manager that shows the progress line."""

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        self._plan = plan
        self._console = console or Console(stderr=True, highlight=False)
        self._status = self._console.status("warming up") if self._console.is_terminal else None
        self._ttfts_s: list[float] = []
        self._num_complete = self._num_failed = self._num_tokens = 0
        self._began: float | None = None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def count(self, sample: Sample) -> None:
        """Add a finished request to the totals and update the line."""
        if self._began is None:
            self._began = time.perf_counter() - sample.due_s - sample.total_s
        self._num_complete += sample.is_complete
        self._num_failed += not sample.is_complete
        self._num_tokens += sample.num_tokens
        if sample.ttft_s is not None:
            self._ttfts_s.append(sample.ttft_s)
        if self._status is not None:
            self._status.update(self._line(time.perf_counter() - self._began))

    def _line(self, elapsed_s: float) -> str:
        limit = self._plan.num_requests
        of = "" if limit is None else f" of {limit * self._plan.num_turns}"
        line = f"{self._num_complete}{of} completed, {self._num_tokens / max(elapsed_s, 1e-9):.3g} tokens/s"
        if self._ttfts_s:
            line += f", first token after {duration(percentile(self._ttfts_s, 50))} (p50)"
        return line + (f", {self._num_failed} failed" if self._num_failed else "")
