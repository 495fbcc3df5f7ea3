"""Plot a trace written by a worker with --trace-steps.

    python tools/draw_trace.py TRACE.json OUT.png [FROM_S [TO_S]]

The plot shows the phases of each step, one lane per sequence, the number of tokens per step and the number of
allocated KV cache blocks. FROM_S and TO_S limit the time range, in seconds since the first step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

COLORS = {
    "schedule": "#8c8c8c",
    "prepare": "#c9a227",
    "encode": "#7b5ea7",
    "forward": "#2f6db3",
    "sample": "#3c9d5d",
    "postprocess": "#c4543c",
    "waiting": "#d9d9d9",
    "prompt": "#e0a458",
    "output": "#5b9bd5",
}
PREFILL_COLOR, DECODE_COLOR = "#e0a458", "#5b9bd5"
MAX_LANES = 40
Events = list[dict[str, Any]]
Bars = list[tuple[float, float, str]]  # start, duration, name


def read(path: Path) -> Events:
    """Read the events of a trace. The file may be incomplete, for example if the worker crashed."""
    text = path.read_text("utf-8")
    try:
        events = json.loads(text)
    except json.JSONDecodeError:
        events = json.loads(text[: text.rindex("\n")].rstrip(",\n") + "]")
    return [event for event in events if event["ph"] != "M"]


def sequences(events: Events, end: float, seconds: Callable[[int], float]) -> list[Bars]:
    """Return one lane per sequence, in order of arrival. Unfinished spans extend to the end of the trace."""
    lanes: dict[str, Bars] = {}
    for event in events:
        if event["ph"] == "b" and event["name"] in COLORS:
            lanes.setdefault(event["id"], []).append((seconds(event["ts"]), end, event["name"]))
        elif event["ph"] == "e" and event["name"] in COLORS:
            began, _, name = lanes[event["id"]].pop()
            lanes[event["id"]].append((began, seconds(event["ts"]), name))
    return [[(began, ended - began, name) for began, ended, name in lane] for lane in lanes.values()]


def draw_bars(axes: Axes, bars: Bars, row: float, height: float) -> None:
    for name, color in COLORS.items():
        own = [(began, length) for began, length, found in bars if found == name]
        axes.broken_barh(own, (row - height / 2, height), color=color, linewidth=0)


def draw(events: Events, out: Path, first_s: float, last_s: float | None) -> None:
    steps = [event for event in events if event["name"] == "step"]
    start = steps[0]["ts"]

    def seconds(ts: int) -> float:
        return float(ts - start) / 1e6

    end = seconds(max(event["ts"] + event.get("dur", 0) for event in events))
    phases = [
        (seconds(event["ts"]), event["dur"] / 1e6, event["name"]) for event in events if event["ph"] == "X"
    ]
    lanes = [
        lane
        for lane in sequences(events, end, seconds)
        if lane[-1][0] + lane[-1][1] >= first_s and lane[0][0] <= (last_s or end)
    ][:MAX_LANES]
    rows = 0.14 * len(lanes)  # inches
    heights = [0.4, 0.1 + rows, 1.3]
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, sharex=True, figsize=(11, 2.6 + rows), height_ratios=heights, layout="constrained"
    )
    draw_bars(top, phases, 0, 1)
    top.set(yticks=[], ylabel="step", xlim=(first_s, last_s or end))
    for row, lane in enumerate(lanes):
        draw_bars(middle, lane, -row, 0.7)
    middle.set(yticks=[], ylabel="sequences", ylim=(-len(lanes), 1))
    times = [seconds(step["ts"]) for step in steps]
    sizes = [[step["args"][name] for step in steps] for name in ("prefill tokens", "decode tokens")]
    bottom.stackplot(times, sizes, colors=[PREFILL_COLOR, DECODE_COLOR], step="post")
    bottom.set(ylabel="tokens per step", xlabel="seconds")
    blocks = [event for event in events if event["name"] == "blocks"]
    right = bottom.twinx()
    right.step([seconds(e["ts"]) for e in blocks], [e["args"]["held"] for e in blocks], "k", lw=0.8)
    right.set(ylabel="allocated blocks", ylim=(0, None))
    legend = [Patch(color=color, label=name) for name, color in COLORS.items()]
    figure.legend(handles=legend, ncols=len(legend), loc="outside upper center", frameon=False)
    figure.savefig(out, dpi=90)


def main() -> int:
    if len(sys.argv) not in (3, 4, 5):
        print(__doc__)
        return 2
    trace, out = Path(sys.argv[1]), Path(sys.argv[2])
    first_s, last_s, *_ = [*map(float, sys.argv[3:]), 0.0, 0.0]
    events = read(trace)
    if not any(event["name"] == "step" for event in events):
        print(f"{trace} contains no steps yet.")
        return 1
    draw(events, out, first_s, last_s or None)
    print(f"{out}: {out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
