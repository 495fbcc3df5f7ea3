"""``ask`` and ``models``: what a user and a script see, and the exit code."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
from llava_cli import app
from llava_cli.exit_codes import EXIT_CODES
from typer.testing import CliRunner

from tests.client.cli.command_line import start
from tests.client.scripted_peer import (
    DELTAS,
    PNG,
    TEXT,
    USAGE,
    Behaviour,
    Peer,
    chunk,
    event,
    hangs_up,
    is_silent_until,
    refuses,
    streams,
)

runner = CliRunner()


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    return str(path)


@pytest.fixture(autouse=True)
def point_at_peer(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_BASE_URL", peer.url)


def test_an_answer_is_printed_and_nothing_else(photo: str, peer: Peer) -> None:
    result = runner.invoke(app, ["ask", photo, photo, "What is this?", "--max-tokens", "9", "--seed", "3"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, TEXT + "\n", "")
    kinds = [part["type"] for part in peer.last_body["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    assert (peer.last_body["max_tokens"], peer.last_body["seed"]) == (9, 3)


def test_a_question_needs_no_picture(peer: Peer) -> None:
    assert runner.invoke(app, ["ask", "Hello?"]).stdout == TEXT + "\n"
    assert peer.last_body["messages"] == [{"role": "user", "content": "Hello?"}]


def test_a_picture_may_come_from_stdin(peer: Peer) -> None:
    result = runner.invoke(app, ["ask", "-", "What is this?"], input=PNG)
    assert result.exit_code == 0
    assert peer.last_body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")


def test_json_is_one_object_with_everything(photo: str) -> None:
    result = runner.invoke(app, ["ask", photo, "What is this?", "--json"])
    answer = json.loads(result.stdout)
    assert (answer["text"], answer["finish_reason"], answer["usage"]) == (TEXT, "stop", USAGE)


def test_an_answer_cut_at_its_limit_says_so_on_stderr(peer: Peer) -> None:
    peer.script(streams(event(chunk({"content": "A"}, "length")), event("[DONE]")))
    result = runner.invoke(app, ["ask", "Hello?"])
    assert (result.exit_code, result.stdout) == (0, "A\n")
    assert "raise --max-tokens" in result.stderr


@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [
        (refuses(400, "prompt is\ntoo long"), 1, "prompt is too long"),
        (refuses(401, "no such key"), 4, "no such key"),
        (refuses(403, "not allowed"), 4, "not allowed"),
        (refuses(429, "too many", retry_after="999"), 5, "too many"),
        (refuses(503, "queue full", retry_after="999"), 5, "queue full"),
        (streams(event(chunk({"content": "A"})), then=hangs_up), 3, "broke off after 1 characters"),
        (streams(event({"error": {"message": "the worker crashed"}})), 1, "the worker crashed"),
    ],
)
def test_a_failure_is_one_line_and_a_code(peer: Peer, behaviour: Behaviour, code: int, said: str) -> None:
    peer.script(behaviour)
    result = runner.invoke(app, ["ask", "Hello?"])
    assert result.exit_code == code
    assert result.stderr.startswith("llava-serve: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_server_is_code_three_with_its_address() -> None:
    result = runner.invoke(app, ["ask", "Hello?", "--base-url", "http://127.0.0.1:1"])
    assert result.exit_code == 3
    assert "cannot reach http://127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.png", "What?"], "'none.png': No such file"),
        (["What is this?", "photo.png"], "the question comes last"),
        (["Hello?", "--base-url", "nonsense"], "not an http:// or https:// address"),
    ],
)
def test_wrong_usage_is_code_two(arguments: list[str], said: str, peer: Peer) -> None:
    result = runner.invoke(app, ["ask", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
    assert peer.requests == []


def test_models_are_listed_one_a_line(peer: Peer) -> None:
    peer.listed = ["a", "b"]
    assert runner.invoke(app, ["models"]).stdout == "a\nb\n"
    [first, _] = json.loads(runner.invoke(app, ["models", "--json"]).stdout)
    assert (first["id"], first["details"]) == ("a", {"context_length": 512})


def test_no_model_is_no_line(peer: Peer) -> None:
    peer.listed = []
    assert runner.invoke(app, ["models"]).stdout == ""


def test_help_documents_the_exit_codes() -> None:
    shown = " ".join(runner.invoke(app, ["--help"]).stdout.split())
    assert EXIT_CODES in shown


def test_ctrl_c_ends_with_130_and_without_a_traceback(peer: Peer) -> None:
    released = threading.Event()
    peer.script(streams(event(chunk({"content": DELTAS[0]})), then=is_silent_until(released)))
    with start("ask", "Hello?") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(len(DELTAS[0])) == DELTAS[0]
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == ""
    released.set()
    assert process.returncode == 130


def test_a_reader_that_has_enough_is_no_error_message(peer: Peer) -> None:
    more = [event(chunk({"content": "x" * 4096}))] * 64
    peer.script(streams(*more, event("[DONE]")))
    with start("ask", "Hello?") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
