"""docs/reference/errors.md has a section for each error code, and each error links to its section."""

from __future__ import annotations

import re
from pathlib import Path

from llava_server.error_response import to_error
from llava_server.errors import ERRORS, ApiError
from llava_wire.messages.event import ErrorCode

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")[1:]}


def test_every_error_code_has_a_section_with_its_status_and_a_remedy() -> None:
    assert set(SECTIONS) == set(ERRORS)
    for code, kind in ERRORS.items():
        _, meaning, remedy, *_ = SECTIONS[code].strip().split("\n\n")
        assert meaning.startswith(f"Status {kind.status}, `{kind.type}`. "), code
        assert len(remedy) > 3, code


def test_every_code_of_the_wire_is_an_error_of_the_server() -> None:
    assert {code.value for code in ErrorCode} <= set(ERRORS)


def test_an_error_links_to_its_section() -> None:
    for code in ERRORS:
        path, _, anchor = to_error(ApiError(code, "text"), None).error.doc.partition("#")
        assert (ROOT / path).is_file() and anchor == code


def test_every_setting_that_the_page_names_exists() -> None:
    from llava_server.settings import Settings

    named = {name.lower() for name in re.findall(r"LLAVA_([A-Z_]+)", PAGE)}
    assert named <= set(Settings.model_fields)
