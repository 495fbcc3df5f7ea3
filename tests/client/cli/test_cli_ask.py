"""Output and exit codes of ``ask`` and ``models``."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
from llava_cli import create_app
from llava_cli.exit_codes import EXIT_CODES
from typer.testing import CliRunner

from tests.client.cli.command_line import start
from tests.client.scripted_server import (
    DELTAS,
    PNG,
    TEXT,
    USAGE,
    Responder,
    ScriptedServer,
    chunk,
    closes_connection,
    event,
    hangs_until,
    returns_error,
    streams,
)

runner = CliRunner()


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    return str(path)


@pytest.fixture(autouse=True)
def use_scripted_server(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_BASE_URL", server.url)


def test_only_the_response_is_printed(photo: str, server: ScriptedServer) -> None:
    result = runner.invoke(
        create_app(), ["ask", photo, photo, "What is this?", "--max-tokens", "9", "--seed", "3"]
    )
    assert (result.exit_code, result.stdout, result.stderr) == (0, TEXT + "\n", "")
    kinds = [part["type"] for part in server.last_body["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    assert (server.last_body["max_tokens"], server.last_body["seed"]) == (9, 3)


def test_a_question_does_not_require_an_image(server: ScriptedServer) -> None:
    assert runner.invoke(create_app(), ["ask", "Hello?"]).stdout == TEXT + "\n"
    assert server.last_body["messages"] == [{"role": "user", "content": "Hello?"}]


def test_an_image_can_be_read_from_stdin(server: ScriptedServer) -> None:
    result = runner.invoke(create_app(), ["ask", "-", "What is this?"], input=PNG)
    assert result.exit_code == 0
    assert server.last_body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")


def test_json_prints_one_object_with_all_fields(photo: str) -> None:
    result = runner.invoke(create_app(), ["ask", photo, "What is this?", "--json"])
    answer = json.loads(result.stdout)
    assert (answer["text"], answer["finish_reason"], answer["usage"]) == (TEXT, "stop", USAGE)


def test_a_truncated_response_prints_a_hint_on_stderr(server: ScriptedServer) -> None:
    server.script(streams(event(chunk({"content": "A"}, "length")), event("[DONE]")))
    result = runner.invoke(create_app(), ["ask", "Hello?"])
    assert (result.exit_code, result.stdout) == (0, "A\n")
    assert "Increase --max-tokens" in result.stderr


@pytest.mark.parametrize(
    ("responder", "code", "message"),
    [
        (returns_error(400, "prompt is\ntoo long"), 1, "prompt is too long"),
        (returns_error(401, "no such key"), 4, "no such key"),
        (returns_error(403, "not allowed"), 4, "not allowed"),
        (returns_error(429, "too many", retry_after="999"), 5, "too many"),
        (returns_error(503, "queue full", retry_after="999"), 5, "queue full"),
        (
            streams(event(chunk({"content": "A"})), then=closes_connection),
            3,
            "interrupted after 1 characters",
        ),
        (streams(event({"error": {"message": "the worker crashed"}})), 1, "the worker crashed"),
    ],
)
def test_a_failure_prints_one_line_and_sets_the_exit_code(
    server: ScriptedServer, responder: Responder, code: int, message: str
) -> None:
    server.script(responder)
    result = runner.invoke(create_app(), ["ask", "Hello?"])
    assert result.exit_code == code
    assert result.stderr.startswith("llava-serve: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unreachable_server_exits_with_code_three_and_its_url() -> None:
    result = runner.invoke(create_app(), ["ask", "Hello?", "--base-url", "http://127.0.0.1:1"])
    assert result.exit_code == 3
    assert "Cannot reach http://127.0.0.1:1" in result.stderr
    assert "--base-url or LLAVA_BASE_URL) to the URL that `llava-serve up` printed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", "What?"], "'none.png': No such file"),
        (["What is this?", "photo.png"], "The question must come last"),
        (["Hello?", "--base-url", "nonsense"], "Use an http:// or https:// URL"),
    ],
)
def test_invalid_usage_exits_with_code_two(
    arguments: list[str], message: str, server: ScriptedServer
) -> None:
    result = runner.invoke(create_app(), ["ask", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert server.requests == []


def test_models_are_listed_one_per_line(server: ScriptedServer) -> None:
    server.models = ["a", "b"]
    assert runner.invoke(create_app(), ["models"]).stdout == "a\nb\n"
    [first, _] = json.loads(runner.invoke(create_app(), ["models", "--json"]).stdout)
    assert (first["id"], first["details"]) == ("a", {"context_length": 512})


def test_an_empty_model_list_prints_nothing(server: ScriptedServer) -> None:
    server.models = []
    assert runner.invoke(create_app(), ["models"]).stdout == ""


def test_help_documents_the_exit_codes() -> None:
    shown = " ".join(runner.invoke(create_app(), ["--help"]).stdout.split())
    assert EXIT_CODES in shown


def test_ctrl_c_exits_with_code_130_without_a_traceback(server: ScriptedServer) -> None:
    released = threading.Event()
    server.script(streams(event(chunk({"content": DELTAS[0]})), then=hangs_until(released)))
    with start("ask", "Hello?") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(len(DELTAS[0])) == DELTAS[0]
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == ""
    released.set()
    assert process.returncode == 130


def test_a_closed_pipe_prints_no_error_message(server: ScriptedServer) -> None:
    more = [event(chunk({"content": "x" * 4096}))] * 64
    server.script(streams(*more, event("[DONE]")))
    with start("ask", "Hello?") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
