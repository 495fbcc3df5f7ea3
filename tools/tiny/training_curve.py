"""Plot the held-out accuracy of a training run over time.

cd tools; python -m tiny.training_curve WORK/history.jsonl curve.png
"""

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["draw_curve"]


def draw_curve(history: Path, out: Path) -> None:
    """Plot the trainer's history.jsonl and save the plot as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    reports = [json.loads(line) for line in history.read_text().splitlines()]
    figure: Any
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), dpi=90)
    _lines(left, reports, "label_accuracy", {})
    left.set_title("Patch labels predicted from the tower")
    scored = [report for report in reports if report["accuracy"]]
    _lines(right, scored, "accuracy", {"all": {"color": "black", "linewidth": 2.5}})
    right.set_title("Exactly correct answers")
    for axes in (left, right):
        axes.set_xlabel("minutes of training")
        axes.set_ylabel("held-out accuracy")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(out)


def _lines(axes: Any, reports: list[dict[str, Any]], which: str, styles: dict[str, dict[str, Any]]) -> None:
    minutes = [report["minutes"] for report in reports]
    for name in reports[-1][which]:
        shares = [report[which].get(name, float("nan")) for report in reports]
        axes.plot(minutes, shares, label=name, **styles.get(name, {}))


if __name__ == "__main__":
    draw_curve(Path(sys.argv[1]), Path(sys.argv[2]))
