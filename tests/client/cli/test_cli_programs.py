"""``server`` and ``worker`` become the programs; a missing extra is named with the line that installs it."""

from __future__ import annotations

import sys

import pytest
from llava_cli import app
from llava_cli.extras import missing_modules
from typer.testing import CliRunner

from tests.client.cli.command_line import start
from tests.machine_speed import scaled

runner = CliRunner()


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "flag"), [("server", "--redis-url"), ("worker", "--precision")])
def test_the_program_gets_the_arguments_as_they_are(name: str, flag: str) -> None:
    shown, _ = start(name, "--help").communicate(timeout=scaled(60))
    assert f"llava_{name}" in shown
    assert flag in shown


@pytest.mark.e2e
def test_the_programs_exit_code_is_the_commands() -> None:
    process = start("server", "--port", "nonsense")
    _, stderr = process.communicate(timeout=scaled(60))
    assert process.returncode == 2
    assert "nonsense" in stderr


@pytest.mark.parametrize(
    ("arguments", "module", "line"),
    [
        (["server"], "fastapi", "pip install 'llava-serve[server]'"),
        (["worker"], "torch", "pip install 'llava-serve[worker]'"),
        (["worker", "--model", "echo"], "msgspec", "pip install 'llava-serve[worker]'"),
        (["up"], "uvicorn", "pip install 'llava-serve[server]'"),
        (["up"], "redis", "pip install 'llava-serve[server,worker]'"),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    arguments: list[str], module: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as the import system marks what is not there
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert module in result.stderr
    assert line in result.stderr


def test_the_echo_model_needs_no_model_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert missing_modules("worker", model="echo") == []
    assert missing_modules("worker", model="tiny") == ["torch"]
