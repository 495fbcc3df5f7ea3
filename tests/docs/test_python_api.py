"""The page of the Python API lists every public name of the client."""

from __future__ import annotations

import re
from pathlib import Path

import llava_client

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "python-api.md"


def test_the_page_lists_every_public_name_once() -> None:
    listed = re.findall(r"^::: llava_client\.(\w+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(llava_client.__all__)
