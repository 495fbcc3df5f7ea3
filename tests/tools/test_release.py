"""The version of the project is in pyproject.toml, and tools/release.py changes all copies of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import release

ROOT = Path(__file__).parents[2]
TEXTS = {path: (ROOT / path).read_text("utf-8") for path in (*release.FILES, "CHANGELOG.md")}
NEXT = "99.0.0"


def test_no_file_contains_the_version_in_addition_to_those_that_a_release_changes() -> None:
    command = ["git", "grep", "-lE", rf"(llava-serve[a-z-]*[:=]+|VERSION=|[vV]ersion: ){release.version()}\b"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(found) <= set(release.FILES)


def test_a_release_changes_the_version_everywhere_and_begins_a_section_of_the_changelog() -> None:
    changed = release.release(release.version(), NEXT, TEXTS, "2030-01-31")
    for path in release.FILES:
        assert NEXT in changed[path]
        assert not re.search(rf"(?<![\d.]){re.escape(release.version())}(?![\d.])", changed[path]), path
    assert f"## Unreleased\n\n## {NEXT} - 2030-01-31\n" in changed["CHANGELOG.md"]
    assert release.changelog_of(changed["CHANGELOG.md"], NEXT).startswith("###")


@pytest.mark.parametrize("new", ["0.0.9", release.version(), "1.0", "v1.0.0", "1.0.0rc1"])
def test_a_version_that_is_not_higher_or_not_semantic_is_rejected(new: str) -> None:
    with pytest.raises(ValueError, match=r"must be MAJOR.MINOR.PATCH and higher than"):
        release.release(release.version(), new, TEXTS, "2030-01-31")


def test_release_notes_require_a_section_of_the_version() -> None:
    with pytest.raises(ValueError, match=r"has no section '## 99.0.0 - DATE'"):
        release.changelog_of(TEXTS["CHANGELOG.md"], NEXT)
