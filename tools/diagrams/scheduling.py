"""How the token budget of consecutive engine steps is filled."""

from __future__ import annotations

from diagrams.drawing import Drawing

__all__ = ["scheduling"]

BUDGET = 512  # tokens per step, the default on a CPU
# Decoding sequences, and the chunk of a prompt, in each step. The prompt of request C has 1,200 tokens.
_STEPS = (
    ("A, B", 0, ""),
    ("A, B", 510, "prompt C, part 1"),
    ("A, B", 510, "prompt C, part 2"),
    ("A, B", 180, "prompt C, rest"),
    ("A, B, C", 0, ""),
)
_WIDTH, _GAP, _LEFT, _BASE, _SCALE = 148, 18, 74, 262, 0.36


def scheduling() -> str:
    """Return the diagram."""
    drawing = Drawing(
        _LEFT + 5 * (_WIDTH + _GAP) + 8, 330, "Decodes and chunks of a long prompt in five engine steps"
    )
    top = _BASE - 28 - BUDGET * _SCALE
    drawing.text(
        _LEFT,
        22,
        "A long prompt is computed in chunks, so streams A and B get a token in every step",
        kind="title",
    )
    drawing.line(_LEFT - 6, top, _LEFT + 5 * (_WIDTH + _GAP), top, role="line dashed")
    drawing.text(_LEFT - 12, top + 4, "budget", anchor="end")
    drawing.text(_LEFT - 12, top + 20, f"{BUDGET}", anchor="end")
    for number, (streams, tokens, label) in enumerate(_STEPS):
        left = _LEFT + number * (_WIDTH + _GAP)
        drawing.box(left, _BASE - 26, _WIDTH, 26, f"next token of {streams}", role="accent", title=False)
        if tokens:
            height = tokens * _SCALE
            lines = (label, f"{tokens} tokens")
            drawing.box(left, _BASE - 28 - height, _WIDTH, height, *lines, role="warm", title=False)
        drawing.text(left + _WIDTH / 2, _BASE + 20, f"step {number + 1}", kind="title", anchor="middle")
    drawing.arrow(_LEFT, _BASE + 34, _LEFT + 5 * (_WIDTH + _GAP) - _GAP, _BASE + 34)
    drawing.text(_LEFT, _BASE + 56, "request C arrives during step 1; its first token is sampled in step 4")
    return drawing.document()
