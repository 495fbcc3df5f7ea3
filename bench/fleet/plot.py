"""The plot of a fleet record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

__all__ = ["plot"]


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """Plot the costs of a token and of a submitted job, save the plot to ``path`` and return ``path``."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8))
    fleets = results["fleets"]
    for num_shards in sorted({fleet["num_shards"] for fleet in fleets}):
        label = f"{num_shards} shard" + "s" * (num_shards > 1)
        _plot_fleets(left, [fleet for fleet in fleets if fleet["num_shards"] == num_shards], label)
    _plot_fleets(left, results["unpaced"], "1 shard, unpaced", "--")
    left.set(ylabel="CPU time of Redis per token (µs)", title="All slots in use")
    _plot_fleets(middle, results["sparse"], "1 shard")
    middle.set(ylabel="CPU time of Redis per token (µs)", title="The same few jobs in all fleets")
    for axes in (left, middle):
        axes.set(xscale="log", xlabel="workers", ylim=(0, None))
        axes.legend()
    queues = results["waiting"]
    for name, label in (("submit_cpu_ms", "submit"), ("pull_and_requeue_cpu_ms", "pull and requeue")):
        right.plot([q["num_waiting"] for q in queues], [q[name] for q in queues], marker="o", label=label)
    right.set(xscale="log", xlabel="waiting jobs", ylabel="CPU time of Redis per job (ms)", ylim=(0, None))
    right.set(title="Many waiting jobs")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _plot_fleets(axes: Any, fleets: Sequence[dict[str, Any]], label: str, style: str = "-") -> None:
    workers = [fleet["num_workers"] for fleet in fleets]
    costs = [fleet["redis_us_per_token"] for fleet in fleets]
    axes.plot(workers, costs, style, marker="o", label=label)
