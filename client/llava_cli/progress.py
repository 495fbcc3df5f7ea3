"""The progress bar of a run, shown only if stderr is a terminal, and the errors of individual requests."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from llava_cli.printing import sanitize

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Progress"]

_MAX_SHOWN_ERRORS = 5


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} {self._unit}/s" if task.speed else "")


class Progress:
    """A context manager that shows the bar. ``num_failed`` is the number of failed requests in this run.

    ``unit`` is the plural noun for what is counted. The total can be set later.
    """

    def __init__(self, num_done: int, total: int | None, unit: str) -> None:
        self.num_failed = 0
        self._console = Console(stderr=True, highlight=False)
        self._bar = RichProgress(
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=num_done, failures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def set_total(self, total: int) -> None:
        self._bar.update(self._task, total=total)

    def count(self, name: str, error: str | None) -> None:
        """Add a finished request. Print its error, if any, unless several errors have been printed."""
        if error is not None:
            self.num_failed += 1
            if self.num_failed <= _MAX_SHOWN_ERRORS:
                line = " ".join(f"{name}: {error}".split())
                self._console.print(Text(sanitize(line)), soft_wrap=True)
        failures = f"{self.num_failed} failed" if self.num_failed else ""
        self._bar.update(self._task, advance=1, failures=failures)
