"""Computes summary statistics for the samples of a run. Does no I/O."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from llava_cli.bench.load_generator import Run
from llava_cli.bench.sample import Sample

__all__ = ["PERCENTILES", "distribution", "percentile", "summarize"]

PERCENTILES = (50, 90, 95, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, using linear interpolation like NumPy.

    Raises ValueError if ``values`` is empty.
    """
    if not values:
        raise ValueError("A percentile requires at least one value.")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def distribution(values: Iterable[float | None]) -> dict[str, float] | None:
    """Return the percentiles, mean, minimum, maximum and count of the values that are not None.

    Return None if there are no such values.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        **{f"p{percent}": percentile(known, percent) for percent in PERCENTILES},
        "mean": sum(known) / len(known),
        "min": min(known),
        "max": max(known),
        "count": len(known),
    }


def summarize(
    run: Run, *, slo_ttft_s: float | None = None, slo_tpot_s: float | None = None
) -> dict[str, Any]:
    """Return the "summary" object of the ``--out`` file. Times are in seconds.

    ``goodput`` contains the share of requests that met the service level objectives and the number of such
    requests per second. The objectives are the maximum times ``slo_ttft_s`` and ``slo_tpot_s``. None disables
    an objective. Failed requests count only toward ``num_requests``, ``errors`` and the denominator of the
    goodput share.
    """
    complete = [sample for sample in run.samples if sample.is_complete]
    num_good = sum(_meets_objectives(sample, slo_ttft_s, slo_tpot_s) for sample in complete)
    num_tokens = sum(sample.num_tokens for sample in complete)
    wall_s = max(run.wall_s, 1e-9)
    return {
        "num_requests": len(run.samples),
        "num_complete": len(complete),
        "wall_s": run.wall_s,
        "requests_per_s": len(complete) / wall_s,
        "output_tokens_per_s": num_tokens / wall_s,
        "output_tokens": num_tokens,
        "prompt_tokens": distribution(sample.prompt_tokens for sample in complete),
        "cached_tokens": sum(sample.cached_tokens or 0 for sample in complete),
        "ttft_s": distribution(sample.ttft_s for sample in complete),
        "tpot_s": distribution(sample.tpot_s for sample in complete),
        "gap_s": distribution(gap for sample in complete for gap in sample.gaps_s),
        "total_s": distribution(sample.total_s for sample in complete),
        "goodput": {
            "slo_ttft_s": slo_ttft_s,
            "slo_tpot_s": slo_tpot_s,
            "share": num_good / len(run.samples) if run.samples else 0.0,
            "requests_per_s": num_good / wall_s,
        },
        "errors": dict(Counter(sample.error for sample in run.samples if sample.error is not None)),
    }


def _meets_objectives(sample: Sample, slo_ttft_s: float | None, slo_tpot_s: float | None) -> bool:
    meets_ttft = slo_ttft_s is None or (sample.ttft_s is not None and sample.ttft_s <= slo_ttft_s)
    meets_tpot = slo_tpot_s is None or sample.tpot_s is None or sample.tpot_s <= slo_tpot_s
    return meets_ttft and meets_tpot
