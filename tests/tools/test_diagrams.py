"""The diagrams in docs/images are those that tools/diagrams draws."""

from __future__ import annotations

import re

import pytest
from diagrams.__main__ import DIAGRAMS, FOLDER
from diagrams.drawing import Drawing


@pytest.mark.parametrize("name", DIAGRAMS)
def test_the_diagram_is_up_to_date_and_usable_in_light_and_dark_pages(name: str) -> None:
    committed = (FOLDER / name).read_text("utf-8")
    assert committed == DIAGRAMS[name](), "Run: PYTHONPATH=tools python -m diagrams"
    assert "prefers-color-scheme:dark" in committed
    assert re.findall(r"\b(?:href=|src=|url\()", committed) == []  # loads nothing


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_page_shows_the_diagram(name: str) -> None:
    pages = (FOLDER.parent / "how-it-works").glob("*.md")
    assert any(f"](../images/{name})" in page.read_text("utf-8") for page in pages)


def test_a_text_that_is_wider_than_its_box_is_rejected() -> None:
    with pytest.raises(ValueError, match="is 134 px wide; the box has 100 px"):
        Drawing(200, 100, "a box").box(0, 0, 100, 40, "twenty characters, x")
