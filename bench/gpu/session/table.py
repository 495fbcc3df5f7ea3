"""The table at the end of a session: at most 60 lines, so that a terminal or a short log shows all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bench.gpu.session.results import ENDS, Line, Results

__all__ = ["MAX_CHARACTERS", "MAX_LINES", "make_table"]

MAX_LINES, MAX_CHARACTERS = 60, 12_000
_MAX_WIDTH = 150  # characters per line
_MAX_PROBLEMS = 18  # lines


def make_table(results: Results, stages: Sequence[str], endings: dict[str, str]) -> str:
    """Return the table. ``endings`` contains the reasons why stages ended early, keyed by stage."""
    lines = list(results.lines())
    head = [_stage_line(stage, lines, endings.get(stage, "")) for stage in stages]
    problems = [*_problems(lines), *_skipped(lines)]
    more = len(problems) - _MAX_PROBLEMS
    if more > 0:
        problems = [*problems[:_MAX_PROBLEMS], f"  and {more} more in {results.path.name}"]
    rows = [line for line in lines if "row" in line.values]
    left = MAX_LINES - len(head) - len(problems)
    omitted = max(0, len(rows) + 1 - left)
    titles = f"{'row':<58} {'measured':>11} {'floor':>11} {'ratio':>7}  verdict"
    if omitted:
        omitted += 1  # for the line below
    body = [titles, *(_row(line) for line in _most_important(rows, len(rows) - omitted))]
    if omitted:
        body.append(f"and {omitted} more rows in {results.path.name}")
    return "\n".join(line[:_MAX_WIDTH] for line in [*head, *problems, *body])


def _most_important(rows: list[Line], num: int) -> list[Line]:
    """Return ``num`` rows in their order. Rows without a target are omitted first."""
    by_target = sorted(range(len(rows)), key=lambda index: rows[index].values["limit_s"] is None)
    return [rows[index] for index in sorted(by_target[:num])]


def _stage_line(stage: str, lines: list[Line], ending: str) -> str:
    own = [line for line in lines if line.stage == stage]
    counts = {status: sum(line.status == status for line in own) for status in ENDS}
    seconds = sum(line.seconds for line in own if line.status != "value")
    text = ", ".join(f"{num} {status}" for status, num in counts.items() if num)
    return f"{stage}: {text or 'no results'} ({seconds:.0f} s){f'; {ending}' if ending else ''}"


def _problems(lines: list[Line]) -> Iterator[str]:
    ended = {(line.stage, line.name) for line in lines if line.status in ENDS}
    for line in lines:
        if line.status in ("failed", "error"):
            yield f"  {line.status.upper()} {line.stage}, {line.name}: {' '.join(line.message.split())}"
        elif line.status == "started" and (line.stage, line.name) not in ended:
            yield f"  OUT OF TIME {line.stage}, {line.name}"
        elif "failed_test" in line.values:
            yield f"  FAILED TEST {line.values['failed_test']}"


def _skipped(lines: list[Line]) -> Iterator[str]:
    """Yield the measurements that were not run, and those that do not apply, once per stage and reason."""
    for status in ("not run", "skipped"):
        own = [line for line in lines if line.status == status]
        # The remaining time differs, so all measurements of a stage that were not run are one line.
        counts = Counter((line.stage, "" if status == "not run" else line.message) for line in own)
        for (stage, message), num in counts.items():
            first = next(line for line in own if line.stage == stage and message in ("", line.message))
            more = f" and {num - 1} more" if num > 1 else ""
            yield f"  {status.upper()} {stage}, {first.name}{more}: {' '.join(first.message.split())}"


def _row(line: Line) -> str:
    title, *durations = (line.values[name] for name in ("row", "seconds", "floor_s", "limit_s"))
    seconds, floor_s, limit_s = durations
    floor = "-" if floor_s is None else _duration(floor_s)
    ratio = "-" if not floor_s else f"{seconds / floor_s:.2f}"
    return f"{title:<58} {_duration(seconds):>11} {floor:>11} {ratio:>7}  {_verdict(seconds, limit_s)}"


def _verdict(seconds: float, limit_s: float | None) -> str:
    if limit_s is None:
        return "-"
    return f"{'ok' if seconds <= limit_s else 'MISSED'} (target {_duration(limit_s)})"


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.3f} ms" if seconds < 10 else f"{seconds:.2f} s"
