"""Tests that docs/deploy/kubernetes.md lists every value of the Helm chart with its default."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from chart_values_page import CHART, PAGE, fill, table

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert fill(page, table(SCHEMA, VALUES)) == page, "run python tools/chart_values_page.py"


def undefined(schema: dict[str, Any], values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the values that the schema does not define, and those without a description."""
    missing = []
    for name, value in values.items():
        property_ = schema["properties"].get(name, {})
        if not property_.get("description"):
            missing.append(prefix + name)
        elif isinstance(value, dict) and "properties" in property_:
            missing += undefined(property_, value, f"{prefix}{name}.")
    return missing


def test_the_schema_describes_every_default_value() -> None:
    assert undefined(SCHEMA, VALUES) == []
    assert undefined(SCHEMA, {**VALUES, "server": {"extra": 1}}) == ["server.extra"]


def test_a_value_without_a_default_is_an_error() -> None:
    values = {name: value for name, value in VALUES.items() if name != "dashboard"}
    with pytest.raises(KeyError, match="dashboard"):
        table(SCHEMA, values)


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(SystemExit, match="Add both markers"):
        fill("# Kubernetes\n", "")
