"""The plot of the fleet records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

__all__ = ["plot"]


def plot(folder: Path) -> Path:
    """Plot the records in ``folder``, save the plot to the same folder and return its path."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8))
    full = _read(folder, "full")
    for num_shards in sorted({fleet["num_shards"] for fleet in full}):
        label = f"{num_shards} shard" + "s" * (num_shards > 1)
        _plot_fleets(left, [fleet for fleet in full if fleet["num_shards"] == num_shards], label)
    _plot_fleets(left, _read(folder, "unpaced"), "1 shard, emits after every step", "--")
    left.set(title="All slots in use", ylabel="CPU time of Redis per token (µs)")
    _plot_fleets(middle, _read(folder, "sparse"), "1 shard")
    middle.set(title="40 jobs in all fleets", ylabel="CPU time of Redis per token (µs)")
    for axes in (left, middle):
        axes.set(xscale="log", xlabel="workers", ylim=(0, None))
        axes.legend()
    queues = _read(folder, "waiting")
    for name, label in (("submit_cpu_ms", "submit"), ("pull_and_requeue_cpu_ms", "pull and requeue")):
        right.plot([q["num_waiting"] for q in queues], [q[name] for q in queues], marker="o", label=label)
    right.set(xscale="log", xlabel="waiting jobs", ylabel="CPU time of Redis per job (ms)", ylim=(0, None))
    right.set(title="Many waiting jobs")
    right.legend()
    figure.tight_layout()
    figure.savefig(folder / "fleet.png", dpi=110)
    pyplot.close(figure)
    return folder / "fleet.png"


def _read(folder: Path, part: str) -> list[dict[str, Any]]:
    """Return the results of a part, or none if it has not been measured."""
    path = folder / f"{part}.json"
    results: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["results"] if path.exists() else []
    return results


def _plot_fleets(axes: Any, fleets: Sequence[dict[str, Any]], label: str, style: str = "-") -> None:
    in_order = sorted(fleets, key=lambda fleet: fleet["num_workers"])
    workers = [fleet["num_workers"] for fleet in in_order]
    costs = [fleet["redis_us_per_token"] for fleet in in_order]
    axes.plot(workers, costs, style, marker="o", label=label)
