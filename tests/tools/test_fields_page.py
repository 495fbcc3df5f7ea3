"""docs/reference/request-fields.md lists every rule for request fields."""

from __future__ import annotations

from fields_page import PAGE, page
from vocabularies.status import RULES


def test_the_page_lists_the_rules_of_the_source_code() -> None:
    text = PAGE.read_text("utf-8")
    assert text == page(), "run python tools/fields_page.py"
    for rules in RULES.values():
        for path in rules.by_path:
            assert f"| `{path}` |" in text, path
