"""tools/audit.py, on reports in the format of pip-audit."""

from __future__ import annotations

import json
from collections.abc import Mapping

import audit
import pytest


def report(*dependencies: Mapping[str, object]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_vulnerabilities_are_listed_with_the_fixed_version() -> None:
    found = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}
    vulnerable, unchecked = audit.findings(report({"name": "a", "version": "1.0", "vulns": [found]}))
    assert vulnerable == ["a 1.0: PYSEC-1, fixed in 1.1"]
    assert unchecked == []


def test_a_package_without_data_is_not_reported_as_safe() -> None:
    skipped = {"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited: a (1.0)"}
    assert audit.findings(report(skipped, {"name": "b", "version": "2", "vulns": []})) == ([], ["a"])


@pytest.mark.parametrize("output", ["", "Traceback", "[]"])
def test_other_output_is_no_report(output: str) -> None:
    with pytest.raises(ValueError):
        audit.findings(output)
