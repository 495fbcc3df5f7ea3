"""docs/configuration.md names every setting of controller and worker as it is now."""

from __future__ import annotations

from typing import Literal

import pytest
from configuration_page import PAGE, SETTINGS, fill, table
from pydantic import Field
from pydantic_settings import BaseSettings


def test_the_page_is_what_the_settings_say() -> None:
    page = PAGE.read_text("utf-8")
    assert fill(page) == page, "run python tools/configuration_page.py"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_row_with_its_variable_flag_and_meaning(name: str) -> None:
    page = PAGE.read_text("utf-8")
    for setting, field in SETTINGS[name].model_fields.items():
        assert field.description, setting
        assert f"| `LLAVA_{setting.upper()}` | `--{setting.replace('_', '-')}`" in page


@pytest.mark.parametrize(
    "setting", ["conversation", "prompt-style", "vision-tower", "base-model", "allow-pickle"]
)
def test_what_a_models_files_cannot_say_is_explained(setting: str) -> None:
    assert f"\n**`--{setting}" in PAGE.read_text("utf-8")


class Changed(BaseSettings):
    is_new: bool = Field(True, description="Says so.")
    size: int = Field(3, gt=1, le=1_000_000, description="How large.")
    kind: Literal["a", "b"] = Field("a", description="Which.")


def test_a_setting_that_changes_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "worker", Changed)
    page = PAGE.read_text("utf-8")
    assert fill(page) != page
    assert "| `LLAVA_SIZE` | `--size` | `3` | above 1 to 1,000,000 | How large. |" in fill(page)


def test_a_row_says_what_is_allowed() -> None:
    assert "| `LLAVA_IS_NEW` | `--is-new`, `--no-is-new` | `true` | - | Says so. |" in table(Changed)
    assert "| `LLAVA_KIND` | `--kind` | `a` | `a`, `b` | Which. |" in table(Changed)


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="needs a part"):
        fill("nothing")
