"""All tests mentioned in the documentation exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FIDELITY = (ROOT / "docs" / "fidelity.md").read_text("utf-8")
RELIABILITY = (ROOT / "docs" / "how-it-works" / "fault-tolerance.md").read_text("utf-8")
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in ROOT.glob("tests/**/*.py")}


def missing(page: str) -> list[str]:
    """Return the tests and test files that a page mentions but that do not exist."""
    files = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    names = re.findall(r"`(test_\w+)`", page)
    return [
        *(file for file, _ in files if file not in SOURCES),
        *(f"{file}::{name}" for file, name in files if name and f"def {name}(" not in SOURCES.get(file, "")),
        *(name for name in names if not any(f"def {name}(" in source for source in SOURCES.values())),
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_tests_that_a_page_names_exist(path: Path) -> None:
    assert missing(path.read_text("utf-8")) == []


def test_a_test_that_does_not_exist_is_found() -> None:
    page = f"`tests/{Path(__file__).name}::test_nothing`, `tests/nowhere.py`, `test_{'nothing'}`"
    assert missing(page) == ["tests/nowhere.py", f"tests/{Path(__file__).name}::test_nothing", "test_nothing"]
    assert missing(f"`tests/{Path(__file__).name}::test_every_point_of_fidelity_names_a_test`") == []


def test_every_point_of_fidelity_names_a_test() -> None:
    rows = [
        line for line in FIDELITY.splitlines() if line.startswith("| ") and not line.startswith("| point")
    ]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row.rsplit("|", 2)[1]] == []


def test_reliability_names_tests_and_files() -> None:
    assert len(set(re.findall(r"`(test_\w+)`", RELIABILITY))) > 15
    assert len(set(re.findall(r"`(tests/[\w/]+\.py)`", RELIABILITY))) > 5
