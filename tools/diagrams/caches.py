"""Which blocks of the KV cache a second question about an image reuses, and what the image cache saves."""

from __future__ import annotations

from diagrams.drawing import Drawing

__all__ = ["caches"]

_LEFT, _WIDTH, _GAP, _HEIGHT = 170, 104, 6, 44
_BLOCKS = ("system", "image 1/4", "image 2/4", "image 3/4")
_IMAGE_PART = 62  # width of the part of the last block that belongs to the image


def caches() -> str:
    """Return the diagram."""
    drawing = Drawing(
        860, 352, "Blocks of the KV cache that two questions about one image share, and the image cache"
    )
    drawing.text(16, 24, "Prefix cache: two questions about the same image", kind="title")
    _prompt(drawing, 44, "first question", "Q1", role="warm")
    _prompt(drawing, 116, "second question", "Q2", role="cold")
    last = _LEFT + 4 * (_WIDTH + _GAP)
    for x in (
        *(_LEFT + number * (_WIDTH + _GAP) + _WIDTH / 2 for number in range(4)),
        last + _IMAGE_PART / 2,
    ):
        drawing.arrow(x, 44 + _HEIGHT + 3, x, 113)
    drawing.text(_LEFT + 2 * (_WIDTH + _GAP), 180, "the same blocks, not copied", anchor="middle")
    drawing.text(last + _WIDTH / 2, 180, "the rows of the image are copied,", anchor="middle")
    drawing.text(last + _WIDTH / 2, 196, "and only Q2 is computed", anchor="middle")
    drawing.text(16, 236, "Image cache: the same image at another position", kind="title")
    _image_cache(drawing)
    drawing.box(16, 322, 20, 16, role="warm")
    drawing.text(42, 335, "computed")
    drawing.box(122, 322, 20, 16, role="cold")
    drawing.text(148, 335, "reused")
    return drawing.document()


def _prompt(drawing: Drawing, top: float, name: str, question: str, *, role: str) -> None:
    """Draw the blocks of a prompt. The last one contains the end of the image and the question."""
    drawing.text(16, top + 27, name, kind="title")
    for number, content in enumerate(_BLOCKS):
        left = _LEFT + number * (_WIDTH + _GAP)
        drawing.box(left, top, _WIDTH, _HEIGHT, content, role=role, title=False)
    last = _LEFT + 4 * (_WIDTH + _GAP)
    drawing.box(last, top, _IMAGE_PART, _HEIGHT, "4/4", role=role, title=False)
    drawing.box(last + _IMAGE_PART, top, _WIDTH - _IMAGE_PART, _HEIGHT, question, role="warm", title=False)


def _image_cache(drawing: Drawing) -> None:
    y = 280
    steps = (("pixels", "plain"), ("vision tower", "warm"), ("image features", "cold"), ("decoder", "warm"))
    for number, (name, role) in enumerate(steps):
        left = 16 + number * 176
        drawing.box(left, y - 22, 124, 36, name, role=role, title=False)
        if number:
            drawing.arrow(left - 48, y - 4, left - 4, y - 4)
    drawing.text(
        16 + 2 * 176 + 62,
        y + 32,
        "cached by the digest of the image: the next request skips the vision tower",
        anchor="middle",
    )
