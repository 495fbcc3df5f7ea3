"""Lines of the table that the benchmark prints. They are also valid Markdown."""

from __future__ import annotations

from typing import Any

__all__ = ["heading", "line"]

_COLUMNS = (
    "format",
    "KV cache",
    "bits per weight",
    "perplexity",
    "added loss (nats per token)",
    "KL divergence (nats per token)",
    "same top token",
    "correct responses",
    "same responses",
)


def heading() -> str:
    return f"{_cells(_COLUMNS)}\n{_cells(['---'] * len(_COLUMNS))}"


def line(row: dict[str, Any]) -> str:
    """Return a table row for the results of a format, or for the reason why there are none."""
    if "why_not" in row:
        return _cells([row["format"], f"not measured: {row['why_not']}", *[""] * (len(_COLUMNS) - 2)])
    return _cells(
        [
            row["format"],
            row["kv_cache"],
            f"{row['bits_per_weight']:.2f}",
            f"{row['perplexity']:.3f}",
            f"{row['added_loss']:+.4f} ± {row['added_loss_error']:.4f}",
            f"{row['kl']:.5f}",
            f"{row['same_top']:.1%}",
            *(f"{row[key]:.1%}" if key in row else "" for key in ("right", "same_responses")),
        ]
    )


def _cells(texts: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(texts)} |"
