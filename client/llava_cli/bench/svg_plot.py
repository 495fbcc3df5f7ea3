"""Plots the results of a run as an SVG document without a plotting library.

One panel shows the time to first token, and the other shows the gaps between pieces. Each panel plots the
cumulative distribution (the share of values up to a given time) on a logarithmic time axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from llava_cli.bench.load_generator import Run
from llava_cli.bench.summary import percentile

__all__ = ["draw"]

_PANEL_WIDTH, _PANEL_HEIGHT = 420, 260
_LEFT, _TOP, _GAP, _BOTTOM = 56, 56, 64, 48
_MIN_S = 1e-4  # pieces in the same packet have a gap of zero, which a logarithmic axis cannot show
_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
_MARKED = (50, 95)
_MAX_POINTS = 600
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.t{font-weight:600;font-size:14px}.s{fill:#666}"
    ".g{stroke:#ddd}.a{stroke:#888}.c{fill:none;stroke:#1769aa;stroke-width:2}.m{fill:#c2410c}"
)


def draw(run: Run, title: str) -> str:
    """Return the plot as an SVG document."""
    complete = [sample for sample in run.samples if sample.is_complete]
    panels = (
        ("time to first token", [sample.ttft_s for sample in complete if sample.ttft_s is not None]),
        ("gaps between pieces", [gap for sample in complete for gap in sample.gaps_s]),
    )
    width = 2 * (_LEFT + _PANEL_WIDTH) + _GAP
    height = _TOP + _PANEL_HEIGHT + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        _text(_LEFT, 22, title, "t"),
    ]
    for index, (name, values) in enumerate(panels):
        left = _LEFT + index * (_PANEL_WIDTH + _LEFT + _GAP // 2)
        parts += [_text(left, 44, name), *_panel(left, values)]
    return "\n".join([*parts, "</svg>\n"])


def _panel(left: int, values: Sequence[float]) -> list[str]:
    bottom = _TOP + _PANEL_HEIGHT
    if not values:
        return [_text(left + 12, bottom - 12, "no values", "s")]
    axis = _Axis(left, [max(value, _MIN_S) for value in values])
    parts = []
    for share in _SHARES:
        y = _y(share)
        parts.append(_line(left, y, left + _PANEL_WIDTH, y, "g"))
        parts.append(_text(left - 8, y + 4, f"{share:.0%}", "s", anchor="end"))
    for tick in axis.ticks():
        x = axis.x(tick)
        parts += [_line(x, _TOP, x, bottom, "g"), _text(x, bottom + 18, duration(tick), "s", anchor="middle")]
    parts += [_line(left, bottom, left + _PANEL_WIDTH, bottom, "a"), _line(left, _TOP, left, bottom, "a")]
    points = " ".join(f"{axis.x(value):.1f},{_y(share):.1f}" for value, share in _steps(values))
    parts.append(f'<polyline class="c" points="{points}"/>')
    for percent in _MARKED:
        value = percentile(values, percent)
        x, y = axis.x(value), _y(percent / 100)
        parts.append(f'<circle class="m" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        is_right = x > left + 0.7 * _PANEL_WIDTH
        label_x, anchor = (x - 8, "end") if is_right else (x + 8, "start")
        parts.append(_text(label_x, y + 16, f"p{percent} {duration(value)}", anchor=anchor))
    return parts


class _Axis:
    """A logarithmic time axis that covers all values.

    Its limits are rounded outward to 1, 2 or 5 times a power of ten.
    """

    def __init__(self, left: int, values: Sequence[float]) -> None:  # in seconds, greater than zero
        self._left = left
        steps = [digit * 10.0**power for power in range(-5, 6) for digit in (1, 2, 5)]
        self._low = max(step for step in steps if step <= min(values))
        self._high = min((step for step in steps if step >= max(values)), default=steps[-1])
        if self._high <= self._low:
            self._high = 2 * self._low
        self._steps = [step for step in steps if self._low <= step <= self._high]

    def ticks(self) -> list[float]:
        """Return at most eight tick values."""
        return self._steps[:: math.ceil(len(self._steps) / 8)]

    def x(self, value: float) -> float:
        """Return the x coordinate of a value, in pixels."""
        span = math.log(self._high / self._low)
        position = math.log(min(max(value, self._low), self._high) / self._low) / span
        return self._left + position * _PANEL_WIDTH


def duration(seconds: float) -> str:
    """Format a duration in a suitable unit, such as 250 us, 41 ms or 1.3 s."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _steps(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the cumulative distribution as (value, share) pairs, thinned out to about ``_MAX_POINTS``."""
    ordered = sorted(values)
    step = math.ceil(len(ordered) / _MAX_POINTS)
    picked = range(step - 1, len(ordered), step)
    return [(ordered[0], 0.0), *((ordered[i], (i + 1) / len(ordered)) for i in picked), (ordered[-1], 1.0)]


def _y(share: float) -> float:
    return _TOP + (1 - share) * _PANEL_HEIGHT


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
