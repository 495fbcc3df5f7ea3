"""Format the records of a comparison as a Markdown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["COLUMNS", "read_records", "serving_table", "value"]

# Title, workload, path to the value in the workload's summary, name of its limit, unit, number of decimals.
COLUMNS = (
    ("TTFT, new image", "new", ("ttft_s", "p50"), "ttft_new_s", "s", 2),
    ("time per token, 1 request", "new", ("tpot_s", "p50"), "tpot_s", "ms", 0),
    ("8 requests, new images", "new8", ("output_tokens_per_s",), "new_tokens_per_s", "tok/s", 1),
    ("8 requests, same image", "same8", ("output_tokens_per_s",), "same_tokens_per_s", "tok/s", 1),
    ("TTFT, text only", "text", ("ttft_s", "p50"), "ttft_text_s", "s", 2),
)


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


def serving_table(folder: Path) -> str:
    """Return a table of all measured servers, followed by a list of servers that could not be measured."""
    lines = [
        "| server | " + " | ".join(title for title, *_ in COLUMNS) + " | startup | memory |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    missing = []
    for record in read_records(folder):
        results = record["results"]
        if why := results.get("why_not"):
            missing.append(f"- {results['title']}: not measured. {why}")
            continue
        cells = [_cell(results, column) for column in COLUMNS]
        ready = f"{results['ready_s']:.0f} s" if "ready_s" in results else "-"
        memory = f"{results['memory_bytes'] / 1e9:.1f} GB" if "memory_bytes" in results else "-"
        lines.append(f"| {results['title']} | " + " | ".join([*cells, ready, memory]) + " |")
    return "\n".join([*lines, "", *missing])


def _cell(results: dict[str, Any], column: tuple[str, str, tuple[str, ...], str, str, int]) -> str:
    """Return the value and, in parentheses, its hardware limit and the number of failed requests."""
    _, workload, path, limit, unit, digits = column
    found = value(results, workload, path)
    if found is None:
        return "-"
    factor = 1e3 if unit == "ms" else 1
    failed = results["workloads"][workload]["errors"]
    note = f"; {sum(failed.values())} failed" if failed else ""
    return f"{found * factor:.{digits}f} {unit} ({results['limits'][limit] * factor:.{digits}f}{note})"
