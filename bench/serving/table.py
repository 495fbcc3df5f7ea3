"""Format the records of a comparison as a Markdown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["COLUMNS", "Column", "read_records", "serving_table", "shares", "value"]


class Column(NamedTuple):
    """A metric: the workload, the path to the value in its summary, and the name of its hardware limit."""

    title: str
    workload: str
    path: tuple[str, ...]
    limit: str
    unit: str
    digits: int

    @property
    def is_rate(self) -> bool:
        """Return whether higher values are better."""
        return self.unit == "tok/s"

    @property
    def factor(self) -> float:
        """Return the number of units per second, or 1 for rates."""
        return 1e3 if self.unit == "ms" else 1.0


COLUMNS = (
    Column("TTFT, new image", "new", ("ttft_s", "p50"), "ttft_new_s", "s", 2),
    Column("time per token, 1 request", "new", ("tpot_s", "p50"), "tpot_s", "ms", 0),
    Column("8 requests, new images", "new8", ("output_tokens_per_s",), "new_tokens_per_s", "tok/s", 1),
    Column("8 requests, same image", "same8", ("output_tokens_per_s",), "same_tokens_per_s", "tok/s", 1),
    Column("TTFT, text only", "text", ("ttft_s", "p50"), "ttft_text_s", "s", 2),
)
_MORE = ("first start", "second start", "memory, loaded", "memory, used")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records sorted by name, except that llava-serve's records come first."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda record: not record["name"].startswith("llava-serve"))


def value(results: dict[str, Any], workload: str, path: tuple[str, ...]) -> float | None:
    """Return a value from the results of a record, or None if it was not measured or all requests failed."""
    found: Any = results.get("workloads", {}).get(workload)
    if not found or not found["num_complete"]:
        return None
    for step in path:
        found = found.get(step) if found else None
    return None if found is None else float(found)


def shares(results: dict[str, Any]) -> dict[str, float]:
    """Return the share of the hardware limit that each measured value reaches, keyed by the limit's name."""
    found = {}
    for column in COLUMNS:
        measured = value(results, column.workload, column.path)
        if measured is not None:
            limit = results["limits"][column.limit]
            found[column.limit] = round(measured / limit if column.is_rate else limit / measured, 3)
    return found


def serving_table(folder: Path) -> str:
    """Return a table of all measured servers, followed by a list of servers that could not be measured."""
    titles = ["server", *(column.title for column in COLUMNS), *_MORE]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    missing = []
    for record in read_records(folder):
        results = record["results"]
        if why := results.get("why_not"):
            missing.append(f"- {results['title']}: not measured. {why}")
            continue
        cells = [results["title"], *(_cell(results, column) for column in COLUMNS)]
        cells += [*_starts(results), *_memory(results)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *missing])


def _cell(results: dict[str, Any], column: Column) -> str:
    """Return the value and, in parentheses, its limit, the share of it, and the number of failed requests."""
    found = value(results, column.workload, column.path)
    if found is None:
        return "-"
    digits, limit = column.digits, results["limits"][column.limit] * column.factor
    failed = results["workloads"][column.workload]["errors"]
    note = f"; {sum(failed.values())} failed" if failed else ""
    share = shares(results)[column.limit]
    return f"{found * column.factor:.{digits}f} {column.unit} ({limit:.{digits}f}, {share:.0%}{note})"


def _starts(results: dict[str, Any]) -> list[str]:
    """Return the times from the first and the second start until the first response.

    The first one includes the conversion of the checkpoint.
    """
    times = [start.get("first_response_s") for start in results.get("starts", [])]
    if times and times[0] is not None:
        times[0] += results.get("conversion_s") or 0.0
    return [*("-" if time is None else f"{time:.1f} s" for time in times), "-", "-"][:2]


def _memory(results: dict[str, Any]) -> list[str]:
    """Return the memory after loading and after the workloads, with shared pages counted once."""
    memory = results.get("memory", {})
    sizes = {moment: f"{figures['pss_bytes'] / 1e9:.1f} GB" for moment, figures in memory.items()}
    return [sizes.get(moment, "-") for moment in ("loaded", "used")]
