"""Commands that run other programs, and the error for a missing extra."""

from __future__ import annotations

import subprocess
import sys

import pytest
from llava_cli import create_app
from llava_cli.extras import missing_modules
from typer.testing import CliRunner

from tests.client.cli.command_line import start
from tests.machine_speed import scaled

runner = CliRunner()


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "flag"), [("server", "--redis-url"), ("worker", "--precision")])
def test_the_program_receives_the_arguments_unchanged(name: str, flag: str) -> None:
    shown, _ = start(name, "--help").communicate(timeout=scaled(60))
    assert f"llava_{name}" in shown
    assert flag in shown


@pytest.mark.e2e
def test_the_usage_of_keys_shows_the_name_of_the_command() -> None:
    shown, _ = start("keys", "--help").communicate(timeout=scaled(60))
    assert "Usage: llava-serve keys [OPTIONS] COMMAND" in shown


@pytest.mark.e2e
def test_the_command_exits_with_the_exit_code_of_the_program() -> None:
    process = start("server", "--port", "nonsense")
    _, stderr = process.communicate(timeout=scaled(60))
    assert process.returncode == 2
    assert "nonsense" in stderr


def test_up_imports_neither_the_client_nor_other_commands() -> None:
    program = (
        "import sys, atexit\n"
        "from llava_cli import main\n"
        "unwanted = ['httpx2', 'llava_client.client', 'llava_cli.commands.ask']\n"
        "atexit.register(lambda: print([name for name in unwanted if name in sys.modules]))\n"
        "sys.argv = ['llava-serve', 'up', '--help']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--model" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "module", "command"),
    [
        (["server"], "fastapi", "pip install 'llava-serve[server]'"),
        (["worker"], "torch", "pip install 'llava-serve[worker]'"),
        (["worker", "--model", "echo"], "msgspec", "pip install 'llava-serve[worker]'"),
        (["up"], "uvicorn", "pip install 'llava-serve[server]'"),
        (["up"], "redis", "pip install 'llava-serve[server,worker]'"),
    ],
)
def test_a_missing_extra_is_reported_with_its_install_command(
    arguments: list[str], module: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # makes the import system treat the module as missing
    result = runner.invoke(create_app(), arguments)
    assert result.exit_code == 2
    assert module in result.stderr
    assert command in result.stderr


def test_the_echo_model_needs_no_model_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert missing_modules("worker", model="echo") == []
    assert missing_modules("worker", model="tiny") == ["torch"]
