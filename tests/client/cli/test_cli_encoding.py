"""Text that an encoding cannot represent, invalid bytes and closed streams never cause a traceback."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from llava_client import Client, ConfigurationError

from tests.client.cli.command_line import MAIN
from tests.client.scripted_server import PNG, TEXT, ScriptedServer, returns, streams
from tests.machine_speed import scaled

ENCODINGS: list[dict[str, str]] = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "utf-8"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX"},
]
INVALID = os.fsdecode(b"na\xefve \xff")  # contains lone surrogates


def run(
    server: ScriptedServer, *arguments: str, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "COLUMNS": "200", "LLAVA_BASE_URL": server.url, **(env or {})}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    ended = subprocess.run([*MAIN, *arguments], env=environment, timeout=scaled(60), **pipes)
    assert b"Traceback" not in (ended.stderr or b""), ended.stderr
    assert b"Exception ignored" not in (ended.stderr or b""), ended.stderr
    return ended


def shown(text: str, encoding: str) -> str:
    """Return the text as it is printed: characters outside the encoding are JSON escapes."""
    return "".join(each if each.encode(encoding, "ignore") else json.dumps(each)[1:-1] for each in text)


@pytest.mark.parametrize("env", ENCODINGS, ids=str)
def test_characters_outside_the_encoding_are_printed_as_escapes(
    server: ScriptedServer, env: dict[str, str]
) -> None:
    encoding = env.get("PYTHONIOENCODING", "ascii" if "PYTHONUTF8" in env else "utf-8")
    for arguments in (["ask", "what?"], ["chat"]):
        ended = run(server, *arguments, env=env, input=b"what?\n")
        assert (ended.returncode, ended.stdout.decode(encoding).strip()) == (0, shown(TEXT, encoding))


@pytest.mark.parametrize("env", ENCODINGS, ids=str)
def test_json_output_is_valid_json_in_every_encoding(server: ScriptedServer, env: dict[str, str]) -> None:
    encoding = env.get("PYTHONIOENCODING", "ascii" if "PYTHONUTF8" in env else "utf-8")
    ended = run(server, "ask", "--json", "what?", env=env)
    assert json.loads(ended.stdout.decode(encoding))["text"] == TEXT


@pytest.mark.parametrize("env", ENCODINGS, ids=str)
def test_errors_and_help_are_printed_in_every_encoding(server: ScriptedServer, env: dict[str, str]) -> None:
    assert run(server, "--help", env=env).returncode == 0
    assert run(server, "ask", "--\u2014", env=env).returncode == 2
    for arguments in (["ask", "f\u2014.png", "what?"], ["batch", "f\u2014.jsonl"], ["embed", "-i", "\u2014"]):
        ended = run(server, *arguments, env=env)
        assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1), ended.stderr
    server.models = ["mod\u00e9le\u2014"]
    assert run(server, "models", env=env).returncode == 0


def test_invalid_bytes_in_a_question_are_sent_as_escapes(server: ScriptedServer) -> None:
    ended = run(server, "ask", INVALID)
    assert ended.returncode == 0
    assert server.last_body["messages"][0]["content"] == INVALID
    ended = run(server, "chat", input=b"na\xefve \xff\n")
    assert ended.returncode == 0
    assert server.last_body["messages"][0]["content"] == "na\ufffdve \ufffd"


def test_invalid_bytes_in_other_arguments_are_no_traceback(server: ScriptedServer) -> None:
    commands = [
        *(["ask", INVALID, "what?"], ["ask", "--model", INVALID, "what?"], ["ask", "--system", INVALID, "a"]),
        *(["ask", "--regex", INVALID, "what?"], ["ask", "--choice", INVALID, "a"], ["embed", INVALID]),
        *(["ask", "--api-key", INVALID, "what?"], ["ask", "--base-url", f"http://{INVALID}", "a"]),
        *(["ask", "--json-schema", INVALID, "a"], ["batch", INVALID], ["batch", f"batch_{INVALID}"]),
        *(["embed", "-i", INVALID], ["models", "--base-url", f"http://x/{INVALID}"], [INVALID]),
        *(["ask", "--api-key", "na\u00efve", "a"], ["ask", "--base-url", "http://a b/", "a"]),
    ]
    for arguments in commands:
        ended = run(server, *arguments)
        assert ended.returncode in (0, 1, 2, 3), (arguments, ended.stderr)


def test_an_image_whose_name_is_not_utf_8_can_be_sent(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"na\xefve.png")
    path.write_bytes(PNG)
    assert run(server, "ask", str(path), "what?").returncode == 0


def test_nul_characters_in_the_conversation_are_no_traceback(server: ScriptedServer) -> None:
    ended = run(server, "chat", input=b"a\0b\n")
    assert ended.returncode == 0
    assert server.last_body["messages"][0]["content"] == "a\0b"
    assert run(server, "chat", input=b"/image a\0b\n").returncode == 2


def test_lone_surrogates_in_a_response_are_no_traceback(server: ScriptedServer) -> None:
    bodies = [
        rb'{"id": "a", "model": "m", "choices": [{"index": 0, "message": {"content": "a\ud800"}}]}',
        rb'{"error": {"message": "no \ud800"}}',
    ]
    for status, body in zip((200, 400), bodies, strict=True):
        server.script(returns(status, body, "application/json"))
        assert run(server, "ask", "--json", "what?").returncode == 1
    server.script(streams(rb'data: {"id": "a", "choices": [{"index": 0, "delta": {"content": "a\ud800"}}]}'))
    assert run(server, "ask", "what?").returncode in (0, 1)


def test_closed_streams_are_no_traceback(server: ScriptedServer) -> None:
    for arguments in (["ask", "what?"], ["models"], ["ask", "--json", "what?"], ["--help"]):
        read_end, write_end = os.pipe()
        os.close(read_end)
        ended = run(server, *arguments, stdout=write_end)
        os.close(write_end)
        assert (ended.returncode, ended.stderr) == (1, b""), arguments
        command = " ".join(f"'{word}'" for word in (*MAIN, *arguments))
        environment = {**os.environ, "LLAVA_BASE_URL": server.url}
        for redirection in (">&-", "2>&-", "<&-", ">&- 2>&- <&-"):
            closed = subprocess.run(
                ["sh", "-c", f"{command} {redirection}"], env=environment, capture_output=True
            )
            assert closed.returncode == 0, (arguments, redirection, closed.stderr)
            assert b"Traceback" not in closed.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="requires /dev/full")
def test_a_full_disk_is_one_line_on_stderr(server: ScriptedServer) -> None:
    for arguments in (["ask", "what?"], ["models"]):
        with open("/dev/full", "wb") as full:
            ended = run(server, *arguments, stdout=full)
        assert ended.returncode == 1
        assert ended.stderr == b"llava-serve: Cannot write the output: No space left on device.\n"


def test_the_client_sends_lone_surrogates_as_escapes(server: ScriptedServer) -> None:
    with Client(server.url) as client:
        client.chat("a\ud83d")
    assert server.last_body["messages"][0]["content"] == "a\ud83d"


@pytest.mark.parametrize("key", ["na\u00efve", "a b", "a\nb", "\ud800", "a\0"])
def test_an_api_key_that_no_header_can_contain_is_rejected(key: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        Client("http://127.0.0.1:1", key)
