"""Tests that docs/reference/configuration.md lists every setting of the server and the worker."""

from __future__ import annotations

from typing import Literal

import pytest
from configuration_page import PAGE, SETTINGS, fill, table
from pydantic import Field
from pydantic_settings import BaseSettings


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert fill(page) == page, "run python tools/configuration_page.py"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_row_with_its_variable_and_flag(name: str) -> None:
    page = PAGE.read_text("utf-8")
    for setting, field in SETTINGS[name].model_fields.items():
        assert field.description, setting
        assert f"| `LLAVA_{setting.upper()}` | `--{setting.replace('_', '-')}`" in page


@pytest.mark.parametrize(
    "setting", ["conversation", "prompt-style", "vision-tower", "base-model", "allow-pickle"]
)
def test_settings_for_information_missing_from_model_files_are_explained(setting: str) -> None:
    assert f"\n**`--{setting}" in PAGE.read_text("utf-8")


class Changed(BaseSettings):
    is_new: bool = Field(True, description="Whether it is new.")
    size: int = Field(3, gt=1, le=1_000_000, description="Its size.")
    kind: Literal["a", "b"] = Field("a", description="Its kind.")


def test_a_changed_setting_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "worker", Changed)
    page = PAGE.read_text("utf-8")
    assert fill(page) != page
    assert "| `LLAVA_SIZE` | `--size` | `3` | above 1 to 1,000,000 | Its size. |" in fill(page)


def test_a_row_lists_the_allowed_values() -> None:
    assert "| `LLAVA_IS_NEW` | `--is-new`, `--no-is-new` | `true` | - | Whether it is new. |" in table(
        Changed
    )
    assert "| `LLAVA_KIND` | `--kind` | `a` | `a`, `b` | Its kind. |" in table(Changed)


def test_a_page_without_markers_is_rejected() -> None:
    with pytest.raises(SystemExit, match="Add both markers"):
        fill("nothing")
