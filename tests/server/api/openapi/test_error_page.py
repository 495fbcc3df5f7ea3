"""docs/errors.md has a section for every code, and each error names its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from llava_server.error_response import to_error
from llava_server.errors import ERRORS, ApiError
from llava_wire.messages.event import ErrorCode

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "errors.md").read_text("utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")[1:]}


@pytest.mark.parametrize("code", ERRORS)
def test_every_code_has_a_section_with_its_status_and_a_way_out(code: str) -> None:
    kind = ERRORS[code]
    _, meaning, way_out = SECTIONS[code].strip().split("\n\n")
    assert meaning.startswith(f"Status {kind.status}, `{kind.type}`. ")
    assert len(way_out) > 3


def test_the_page_has_no_section_for_a_code_that_is_gone() -> None:
    assert set(SECTIONS) == set(ERRORS)


def test_every_code_of_the_wire_is_an_error_of_the_server() -> None:
    assert {code.value for code in ErrorCode} <= set(ERRORS)


@pytest.mark.parametrize("code", ERRORS)
def test_an_error_names_its_section(code: str) -> None:
    path, _, anchor = to_error(ApiError(code, "said"), None).error.doc.partition("#")
    assert (ROOT / path).is_file()
    assert anchor in SECTIONS


def test_every_setting_that_the_page_names_exists() -> None:
    from llava_server.settings import Settings

    named = {name.lower() for name in re.findall(r"LLAVA_([A-Z_]+)", PAGE)}
    assert named <= set(Settings.model_fields)
