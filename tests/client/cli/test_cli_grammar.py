"""``ask`` with constrained output: a JSON Schema file, a regular expression or choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llava_cli import create_app
from typer.testing import CliRunner

from tests.client.scripted_server import ScriptedServer

runner = CliRunner()


@pytest.fixture(autouse=True)
def use_scripted_server(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_BASE_URL", server.url)
    monkeypatch.setenv("COLUMNS", "300")  # so that paths are not wrapped


def test_a_json_schema_is_read_from_a_file_and_named_after_it(tmp_path: Path, server: ScriptedServer) -> None:
    file = tmp_path / "two words.json"
    file.write_text('{"type": "object", "title": "é"}', encoding="utf-8")
    assert runner.invoke(create_app(), ["ask", "Hello?", "--json-schema", str(file)]).exit_code == 0
    assert server.last_body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "two-words", "schema": {"type": "object", "title": "é"}},
    }


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--regex", "[ab]+"], "guided_regex", "[ab]+"),
        (["--choice", "yes", "--choice", "no"], "guided_choice", ["yes", "no"]),
    ],
)
def test_a_regex_and_choices_are_sent_unchanged(
    server: ScriptedServer, flags: list[str], field: str, value: Any
) -> None:
    assert runner.invoke(create_app(), ["ask", "Hello?", *flags]).exit_code == 0
    assert server.last_body[field] == value


def test_output_constraints_are_sent_only_if_requested(server: ScriptedServer) -> None:
    assert runner.invoke(create_app(), ["ask", "Hello?"]).exit_code == 0
    assert not {"response_format", "guided_regex", "guided_choice"} & set(server.last_body)


def test_the_error_for_an_unreadable_schema_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    for make in (lambda: None, lambda: file.write_text("{", encoding="utf-8")):
        make()
        result = runner.invoke(create_app(), ["ask", "Hello?", "--json-schema", str(file)])
        assert result.exit_code == 2
        assert "schema.json" in result.stderr
