"""Plot how servers behave with longer prompts and with more concurrent requests, and print it as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from bench.serving.table import read_records, value
from bench.serving.workloads import CONTEXTS, STREAMS

__all__ = ["growth_table", "plot_growth"]


class _Panel(NamedTuple):
    title: str
    axis: str
    workload: str  # prefix of the names of the workloads
    points: tuple[int, ...]
    path: tuple[str, ...]
    factor: float
    digits: int


_PANELS = (
    _Panel("TTFT, new image (s)", "tokens per prompt", "context", CONTEXTS, ("ttft_s", "p50"), 1, 2),
    _Panel("time per token (ms)", "tokens per prompt", "context", CONTEXTS, ("tpot_s", "p50"), 1e3, 0),
    _Panel("output, new images (tokens/s)", "requests", "streams", STREAMS, ("output_tokens_per_s",), 1, 1),
    _Panel("time per token (ms)", "requests", "streams", STREAMS, ("tpot_s", "p50"), 1e3, 0),
)


def plot_growth(folder: Path, path: Path, title: str) -> Path:
    """Plot the records in ``folder``, save the plot to ``path`` and return ``path``."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [record for record in read_records(folder) if "why_not" not in record["results"]]
    figure, axes = pyplot.subplots(1, len(_PANELS), figsize=(4 * len(_PANELS), 4.4))
    for axis, panel in zip(axes, _PANELS, strict=True):
        for record in records:
            style = "-" if record["name"].startswith("llava-serve") else "--"
            points = list(zip(panel.points, _values(record, panel), strict=True))
            known = [(x, y) for x, y in points if y is not None]
            label = record["results"]["title"]
            axis.plot([x for x, _ in known], [y for _, y in known], style, marker="o", ms=3, label=label)
        axis.set_title(panel.title, fontsize=9)
        axis.set_xlabel(panel.axis, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="lower center", ncols=5, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def growth_table(folder: Path) -> str:
    """Return one Markdown table per panel, with one row per server."""
    records = [record for record in read_records(folder) if "why_not" not in record["results"]]
    lines = []
    for panel in _PANELS:
        head = [f"{panel.title}, {panel.axis}", *map(str, panel.points)]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for record in records:
            found = [_text(number, panel) for number in _values(record, panel)]
            lines.append(f"| {' | '.join([record['results']['title'], *found])} |")
        lines.append("")
    return "\n".join(lines)


def _values(record: dict[str, Any], panel: _Panel) -> list[float | None]:
    found = [value(record["results"], f"{panel.workload}-{point}", panel.path) for point in panel.points]
    return [None if number is None else number * panel.factor for number in found]


def _text(number: float | None, panel: _Panel) -> str:
    return "-" if number is None else f"{number:.{panel.digits}f}"
