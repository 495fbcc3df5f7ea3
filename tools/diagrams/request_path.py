"""The path of a request through the processes, and the path of its events back."""

from __future__ import annotations

from diagrams.drawing import Drawing

__all__ = ["request_path"]

_COMPONENTS = (
    ("Client", "SDK, curl,", "any OpenAI client", "plain"),
    ("Controller", "API, limits,", "image decoding", "accent"),
    ("Redis", "fair queue,", "event logs", "accent"),
    ("Worker", "chat template,", "tokenizer", "accent"),
    ("Engine", "scheduler, model,", "KV cache", "accent"),
)
_DOWN = ("request", "submit", "pull", "add")
_UP = ("chunks", "one read", "one write", "tokens")
_WIDTH, _GAP, _LEFT, _TOP, _HEIGHT = 132, 76, 14, 62, 112


def request_path() -> str:
    """Return the diagram."""
    drawing = Drawing(2 * _LEFT + 5 * _WIDTH + 4 * _GAP, 258, "The path of a request and of its events")
    for number, (name, first, second, role) in enumerate(_COMPONENTS):
        left = _LEFT + number * (_WIDTH + _GAP)
        drawing.box(left, _TOP, _WIDTH, _HEIGHT, name, first, second, role=role)
        if number < 4:
            right = left + _WIDTH
            drawing.arrow(right + 4, _TOP + 30, right + _GAP - 4, _TOP + 30, _DOWN[number])
            drawing.arrow(
                right + _GAP - 4, _TOP + _HEIGHT - 30, right + 4, _TOP + _HEIGHT - 30, _UP[number], below=True
            )
    middle = _LEFT + 2.5 * _WIDTH + 2 * _GAP
    drawing.text(middle, 24, "one job per choice: messages and pixels", kind="title", anchor="middle")
    drawing.text(middle, 42, "nothing about batches or blocks is in the queue", anchor="middle")
    drawing.text(middle, 204, "many events: token IDs and text", kind="title", anchor="middle")
    drawing.text(
        middle,
        222,
        "a worker writes once per engine step, and a controller reads once for all its",
        anchor="middle",
    )
    drawing.text(middle, 239, "streams, regardless of the number of streams", anchor="middle")
    return drawing.document()
