"""Generate the tables in docs/reference/configuration.md from the settings of the server and the worker.

    python tools/configuration_page.py

Only the text between the markers is generated. The rest of the page is written by hand and remains unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from llava_server.settings import Settings as ServerSettings
from llava_worker.settings import Settings as WorkerSettings
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

__all__ = ["PAGE", "SETTINGS", "fill", "table"]

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"
SETTINGS: dict[str, type[BaseSettings]] = {"server": ServerSettings, "worker": WorkerSettings}

_SIGNS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}


def fill(page: str) -> str:
    """Return the page with its tables replaced by tables of the current settings."""
    for name, settings in SETTINGS.items():
        head, begin, rest = page.partition(f"<!-- settings: {name} -->\n")
        _, end, tail = rest.partition("\n<!-- end -->\n")
        if not (begin and end):
            raise SystemExit(
                f"docs/reference/configuration.md has no section from '<!-- settings: {name} -->' to "
                "'<!-- end -->'. Add both markers."
            )
        page = f"{head}{begin}{table(settings)}{end}{tail}"
    return page


def table(settings: type[BaseSettings]) -> str:
    """Return a table with one row per setting, in the order in which they are defined."""
    rows = [_row(name, field) for name, field in settings.model_fields.items()]
    return "\n".join(
        ["| variable | flag | default | allowed | description |", "|---|---|---|---|---|", *rows]
    )


def _row(name: str, field: FieldInfo) -> str:
    flag = "--" + name.replace("_", "-")
    if field.annotation is bool:
        flag = f"{flag}`, `--no-{flag.removeprefix('--')}"
    cells = [f"`LLAVA_{name.upper()}`", f"`{flag}`", _default(field.default), _allowed(field)]
    return "| " + " | ".join([*cells, field.description or ""]) + " |"


def _default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == ():
        return "-"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(field: FieldInfo) -> str:
    kinds = get_args(field.annotation) or (field.annotation,)
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{kind}`" for kind in kinds)
    limits = {
        sign: getattr(limit, sign) for limit in field.metadata for sign in _SIGNS if hasattr(limit, sign)
    }
    texts = [
        _SIGNS[sign].format(f"{value:g}" if value < 1e6 else f"{value:,}") for sign, value in limits.items()
    ]
    return " ".join(texts) or "-"


def main() -> None:
    PAGE.write_text(fill(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
