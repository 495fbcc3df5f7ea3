"""Plot the records of a comparison: one panel per metric and one bar per server, with its limit marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from bench.serving.table import COLUMNS, Column, read_records, value

__all__ = ["plot_serving"]

_LLAVA_SERVE, _OTHERS, _LIMIT = "#1769aa", "#b0b7bf", "#c2410c"


def plot_serving(folder: Path, path: Path, title: str) -> Path:
    """Plot the records in ``folder``, save the plot to ``path`` and return ``path``."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [record for record in read_records(folder) if "why_not" not in record["results"]][::-1]
    figure, axes = pyplot.subplots(
        1, len(COLUMNS), figsize=(3.1 * len(COLUMNS) + 1.5, 1.2 + 0.42 * len(records)), sharey=True
    )
    for axis, column in zip(axes, COLUMNS, strict=True):
        _panel(axis, records, column)
    axes[0].set_yticks(range(len(records)), [record["results"]["title"] for record in records])
    figure.suptitle(f"{title}; the mark is the hardware limit", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _panel(axis: Any, records: list[dict[str, Any]], column: Column) -> None:
    factor, digits = column.factor, column.digits
    for row, record in enumerate(records):
        results = record["results"]
        found = value(results, column.workload, column.path)
        if found is None:
            continue
        is_llava_serve = record["name"].startswith("llava-serve")
        axis.barh(row, found * factor, color=_LLAVA_SERVE if is_llava_serve else _OTHERS, height=0.62)
        axis.text(found * factor, row, f" {found * factor:.{digits}f}", va="center", fontsize=8)
        limit = results["limits"][column.limit] * factor
        axis.plot([limit] * 2, [row - 0.36, row + 0.36], color=_LIMIT, lw=2)
    better = "higher" if column.is_rate else "lower"
    axis.set_title(f"{column.title}\n{column.unit}, {better} is better", fontsize=9)
    axis.margins(x=0.16)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
