"""Formats the results of a run as human-readable text or as JSON. Does no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from llava_cli.bench.load_generator import Run
from llava_cli.bench.plan import Images, Plan
from llava_cli.bench.summary import PERCENTILES
from llava_cli.bench.svg_plot import duration

__all__ = ["as_json", "as_text", "describe"]

_FORMAT = 1  # version of the JSON format; incremented when the meaning of a field changes
_ROWS = (
    ("ttft_s", "time to first token"),
    ("tpot_s", "time per output token"),
    ("gap_s", "gap between pieces"),
    ("total_s", "total time"),
)


def as_json(run: Run, summary: Mapping[str, Any]) -> str:
    """Return all results as JSON, including the measurements of every request. Times are in seconds."""
    document = {
        "format": _FORMAT,
        "tool": "llava-serve bench",
        "started_at": datetime.fromtimestamp(run.started_at, timezone.utc).isoformat(timespec="seconds"),
        "base_url": run.base_url,
        "model": run.model,
        "plan": asdict(run.plan),
        "summary": summary,
        "warm_up": asdict(run.warm_up) if run.warm_up else None,
        "samples": [asdict(sample) for sample in run.samples],
    }
    return json.dumps(document, indent=1) + "\n"


def as_text(run: Run, summary: Mapping[str, Any]) -> str:
    """Return a table of latency percentiles, followed by the other results on separate lines."""
    lines = [f"{run.model} at {run.base_url}: {describe(run.plan)}", ""]
    lines.append(" " * 26 + "".join(f"{name:>10}" for name in (*(f"p{p}" for p in PERCENTILES), "mean")))
    for field, name in _ROWS:
        if distribution := summary[field]:
            values = [duration(distribution[key]) for key in (*(f"p{p}" for p in PERCENTILES), "mean")]
            lines.append(f"{name:<26}" + "".join(f"{value:>10}" for value in values))
    lines += ["", *_facts(summary)]
    return "\n".join(lines)


def describe(plan: Plan) -> str:
    """Return a one-line description of the load test."""
    if plan.rate is None:
        pace = f"{plan.concurrency} concurrent conversations"
    else:
        limit = f", at most {plan.concurrency} concurrent" if plan.concurrency else ""
        pace = f"{plan.rate:g} conversations per second{limit}"
    size = f"{plan.width}x{plan.height}"
    images = {
        Images.NEW: f"a new {size} image each",
        Images.SAME: f"one {size} image shared by all requests",
        Images.NONE: "text only",
    }[plan.images]
    turns = f", {plan.num_turns} turns each" if plan.num_turns > 1 else ""
    ends = f"{plan.max_tokens} tokens" if plan.ignore_eos else f"at most {plan.max_tokens} tokens"
    return f"{pace}, {images}{turns}, {ends} per response, seed {plan.seed}"


def _facts(summary: Mapping[str, Any]) -> list[str]:
    completed = f"{summary['num_complete']} of {summary['num_requests']} requests completed"
    facts = [
        f"{completed} in {summary['wall_s']:.1f} s: {summary['requests_per_s']:.3g} requests/s, "
        f"{summary['output_tokens_per_s']:.4g} tokens/s"
    ]
    if prompt := summary["prompt_tokens"]:
        total = prompt["mean"] * prompt["count"]
        share = f", {summary['cached_tokens'] / total:.0%} cached" if summary["cached_tokens"] else ""
        facts.append(f"mean prompt length {prompt['mean']:.0f} tokens{share}")
    goodput = summary["goodput"]
    limits = [("first token", goodput["slo_ttft_s"]), ("time per token", goodput["slo_tpot_s"])]
    named = " and ".join(f"{name} within {duration(limit)}" for name, limit in limits if limit is not None)
    if named:
        facts.append(f"goodput ({named}): {goodput['share']:.0%}, {goodput['requests_per_s']:.3g} requests/s")
    facts += [f"error {kind}: {count}" for kind, count in sorted(summary["errors"].items())]
    return facts
