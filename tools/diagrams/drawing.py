"""Boxes, arrows and texts as an SVG document, with one style for light and dark pages.

All coordinates and sizes are in pixels. Colors are roles: ``plain`` for components, ``accent`` for what a
diagram is about, ``warm`` for what is computed, ``cold`` for what is reused, and ``alarm`` for failures.
"""

from __future__ import annotations

from html import escape

__all__ = ["LINE", "Drawing", "text_width"]

LINE = 17  # between the baselines of two lines of text
_CHARACTER = 6.7  # average width at 13 px
_STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1f2430}
.title{font-weight:600}.small{font-size:12px;fill:#5b6270}
.plain{fill:#f3f4f7;stroke:#9aa1ae}.accent{fill:#e3e8fb;stroke:#4051b5}.warm{fill:#fdebd8;stroke:#c2621b}
.cold{fill:#dcf1ea;stroke:#1c7f63}.alarm{fill:#fbe0e0;stroke:#c0362c}.dashed{stroke-dasharray:5 4;fill:none}
.line{fill:none;stroke:#5b6270;stroke-width:1.5}.head{fill:#5b6270}.cross{stroke:#c0362c;stroke-width:3}
@media (prefers-color-scheme:dark){
text{fill:#e6e8ee}.small{fill:#a9b0bd}
.plain{fill:#2b303b;stroke:#7d8594}.accent{fill:#2c3560;stroke:#8c9eff}.warm{fill:#4d3420;stroke:#f0a35e}
.cold{fill:#1d463b;stroke:#5fd0ae}.alarm{fill:#552725;stroke:#ff8a80}
.line{stroke:#a9b0bd}.head{fill:#a9b0bd}.cross{stroke:#ff8a80}}
"""


def text_width(text: str) -> float:
    """Return the approximate width of a text in pixels."""
    return len(text) * _CHARACTER


class Drawing:
    """An SVG document to which elements are added in drawing order."""

    def __init__(self, width: int, height: int, description: str) -> None:
        self._width, self._height = width, height
        self._description = description
        self._parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *lines: str,
        role: str = "plain",
        title: bool = True,
    ) -> None:
        """Draw a rectangle with centered lines of text, of which the first is a title.

        Raises ValueError if a line is wider than the box.
        """
        for line in lines:
            if text_width(line) > width:
                raise ValueError(f"{line!r} is {text_width(line):.0f} px wide; the box has {width:.0f} px.")
        self._parts.append(
            f'<rect class="{role}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'
        )
        top = y + (height - LINE * len(lines)) / 2 + 13
        for number, line in enumerate(lines):
            kind = "title" if title and number == 0 else "small"
            self.text(x + width / 2, top + LINE * number, line, kind=kind, anchor="middle")

    def text(self, x: float, y: float, text: str, *, kind: str = "small", anchor: str = "start") -> None:
        """Draw one line of text whose baseline starts, ends or is centered at a point."""
        self._parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">'
            f"{escape(text, quote=False)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, role: str = "line") -> None:
        """Draw a line without an arrowhead."""
        self._parts.append(f'<path class="{role}" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>')

    def arrow(
        self, x1: float, y1: float, x2: float, y2: float, label: str = "", *, below: bool = False
    ) -> None:
        """Draw a horizontal or vertical arrow, with a label above, below or to the right of its center."""
        is_flat = y1 == y2
        direction = (1 if x2 > x1 else -1) if is_flat else (1 if y2 > y1 else -1)
        tip = 8 * direction
        self.line(x1, y1, x2 - (tip if is_flat else 0), y2 - (0 if is_flat else tip))
        side = f"l{-tip:g} -5v10z" if is_flat else f"l-5 {-tip:g}h10z"
        self._parts.append(f'<path class="head" d="M{x2:g} {y2:g}{side}"/>')
        if label and is_flat:
            self.text((x1 + x2) / 2, y1 + (16 if below else -7), label, anchor="middle")
        elif label:
            self.text(x1 + 8, (y1 + y2) / 2 + 4, label)

    def cross(self, x: float, y: float) -> None:
        """Mark a failure."""
        self._parts.append(f'<path class="cross" d="M{x - 7:g} {y - 7:g}l14 14m0 -14l-14 14"/>')

    def document(self) -> str:
        """Return the SVG document."""
        size = f'viewBox="0 0 {self._width} {self._height}" width="{self._width}" height="{self._height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
        title = f"<title>{escape(self._description, quote=False)}</title>"
        return "\n".join([head, title, f"<style>{_STYLE}</style>", *self._parts, "</svg>\n"])
