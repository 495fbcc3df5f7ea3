"""Plot the KL divergence of each format against its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

__all__ = ["plot_quality"]

_LLAVA_SERVE, _LLAMA_CPP = "#1769aa", "#c2410c"


def plot_quality(rows: list[dict[str, Any]], path: Path) -> Path:
    """Plot the rows with quantized weights, save the plot to ``path`` and return ``path``."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.2))
    for row in rows:
        if row.get("kv_cache") != "auto" or not 0 < row["bits_per_weight"] < 16 or row["kl"] <= 0:
            continue
        is_llama_cpp = row["format"].startswith("llama.cpp")
        color = _LLAMA_CPP if is_llama_cpp else _LLAVA_SERVE
        axis.plot(row["bits_per_weight"], row["kl"], "s" if is_llama_cpp else "o", color=color)
        axis.annotate(
            f" {row['format']}", (row["bits_per_weight"], row["kl"]), fontsize=8, color=color, va="bottom"
        )
    axis.set_yscale("log")
    axis.set_xlabel("bits per weight (decoder matrices)")
    axis.set_ylabel("KL divergence from fp32\nnats per token, lower is better")
    axis.margins(x=0.15, y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
