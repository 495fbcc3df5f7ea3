"""Generate the table of values in docs/deploy/kubernetes.md from the Helm chart's schema and default values.

    python tools/chart_values_page.py

Only the text between the markers is generated. The rest of the page is written by hand and remains unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CHART", "PAGE", "fill", "table"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deploy" / "kubernetes.md"
CHART = ROOT / "deploy" / "helm" / "llava-serve"
_BEGIN, _END = "<!-- values -->\n", "\n<!-- end -->\n"
_UNUSED = {"global"}  # Helm adds this value to every chart


def fill(page: str, rows: str) -> str:
    """Return the page with its table replaced by ``rows``."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not (begin and end):
        raise SystemExit(
            "docs/deploy/kubernetes.md has no section from '<!-- values -->' to '<!-- end -->'. "
            "Add both markers."
        )
    return f"{head}{begin}{rows}{end}{tail}"


def table(schema: dict[str, Any], values: dict[str, Any]) -> str:
    """Return a table with one row per value, in the order of the schema.

    Raises KeyError if a value has no default.
    """
    return "\n".join(["| value | default | description |", "|---|---|---|", *_rows(schema, values, "")])


def _rows(schema: dict[str, Any], values: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in schema["properties"].items():
        if prefix + name in _UNUSED:
            continue
        if "properties" in value and values[name]:
            yield from _rows(value, values[name], f"{prefix}{name}.")
            continue
        default = json.dumps(values[name]) if values[name] not in ("", [], {}) else ""
        yield f"| `{prefix}{name}` | {f'`{default}`' if default else '-'} | {value['description']} |"


def main() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    PAGE.write_text(fill(PAGE.read_text("utf-8"), table(schema, values)), "utf-8")


if __name__ == "__main__":
    main()
