"""``chat`` in a terminal and through a pipe."""

from __future__ import annotations

import os
import pty
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from llava_cli import create_app
from typer.testing import CliRunner

from tests.client.cli.command_line import start
from tests.client.scripted_server import (
    PNG,
    TEXT,
    ScriptedServer,
    chunk,
    closes_connection,
    event,
    hangs_until,
    returns_error,
    streams,
)
from tests.machine_speed import scaled

runner = CliRunner()


@pytest.fixture(autouse=True)
def use_scripted_server(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_BASE_URL", server.url)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    return str(path)


def test_lines_from_a_pipe_are_questions_in_one_conversation(photo: str, server: ScriptedServer) -> None:
    result = runner.invoke(
        create_app(), ["chat", photo, "--system", "Be brief."], input="What is this?\n\nWhich colour?\n"
    )
    assert (result.exit_code, result.stdout) == (0, f"{TEXT}\n{TEXT}\n")
    assert [message["role"] for message in server.last_body["messages"]] == [
        *("system", "user", "assistant", "user")
    ]


def test_commands_add_an_image_reset_and_quit(photo: str, server: ScriptedServer) -> None:
    lines = f"Hello?\n/reset\n/image {photo}\nWhat is this?\n/quit\nnot sent\n"
    assert runner.invoke(create_app(), ["chat"], input=lines).exit_code == 0
    [message] = server.last_body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert len(server.chats) == 2


def test_help_and_unknown_commands_are_not_questions(server: ScriptedServer) -> None:
    result = runner.invoke(create_app(), ["chat"], input="/help\n/nonsense\n")
    assert "/image PATH" in result.stdout
    assert "Unknown command /nonsense" in result.stderr
    assert server.chats == []


@pytest.mark.parametrize(
    ("lines", "code"), [("/image\n", 2), ("/image none.png\n", 2), ("Hello?\nnot sent\n", 5)]
)
def test_the_first_failure_ends_a_piped_conversation(server: ScriptedServer, lines: str, code: int) -> None:
    server.script(returns_error(503, "full", retry_after="999"))
    result = runner.invoke(create_app(), ["chat"], input=lines)
    assert result.exit_code == code
    assert result.stderr.startswith("llava-serve: ")
    assert len(server.chats) <= 1


def test_an_invalid_image_is_rejected_before_the_conversation(server: ScriptedServer) -> None:
    assert runner.invoke(create_app(), ["chat", "none.png"]).exit_code == 2
    assert server.requests == []


class Terminal:
    """A user at a terminal, simulated with a pseudoterminal."""

    def __init__(self, handle: int, pid: int) -> None:
        self._handle = handle
        self._pid = pid
        self.shown = ""

    def type(self, line: str) -> None:
        os.write(self._handle, f"{line}\n".encode())

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C repeatedly until ``text`` appears.

        A signal that arrives just before a blocking read takes effect only after the read.
        """
        while text not in self.shown:
            os.kill(self._pid, signal.SIGINT)
            self._read(wait_s=1.0)
        self.see(text)

    def see(self, text: str) -> None:
        """Read until ``text`` appears on the screen, and discard everything up to and including it."""
        while text not in self.shown:
            self._read(wait_s=None)
        self.shown = self.shown.partition(text)[2]

    def _read(self, wait_s: float | None) -> None:
        if select.select([self._handle], [], [], wait_s)[0]:
            self.shown += os.read(self._handle, 4096).decode(errors="replace")


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    process = start(*arguments, stdin=slave, stdout=slave, stderr=slave, env={"TERM": "dumb"})
    os.close(slave)
    try:
        yield Terminal(master, process.pid)
        assert process.wait(scaled(30)) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_ctrl_c_in_a_terminal_stops_the_response_but_not_the_chat(server: ScriptedServer) -> None:
    released = threading.Event()
    server.script(streams(event(chunk({"content": "Once upon"})), then=hangs_until(released)))
    with terminal("chat") as user:
        user.see("you> ")
        user.type("Tell me a story")
        user.see("Once upon")
        user.interrupt_until("[stopped]")
        user.see("you> ")
        user.type("Continue")
        user.see(TEXT)
        user.see("you> ")
        user.interrupt_until("Press Ctrl-D or enter /quit")
        user.see("you> ")
        user.type("/quit")
    released.set()
    assert server.last_body["messages"][1] == {"role": "assistant", "content": "Once upon"}


def test_control_characters_in_a_response_do_not_reach_the_terminal(server: ScriptedServer) -> None:
    server.script(streams(event(chunk({"content": "\x1b]0;owned\x07 fine\x9b2J."})), event("[DONE]")))
    with terminal("chat") as user:
        user.see("you> ")
        user.type("Hello?")
        user.see("\ufffd]0;owned\ufffd fine\ufffd2J.")
        user.see("you> ")
        user.type("/quit")


def test_a_piped_response_is_unchanged(server: ScriptedServer) -> None:
    server.script(streams(event(chunk({"content": "\x1b[1m"})), event("[DONE]")))
    with start("chat") as process:
        assert process.communicate("Hello?\n", timeout=scaled(30)) == ("\x1b[1m\n", "")


def test_the_chat_continues_after_a_failure_in_a_terminal(server: ScriptedServer) -> None:
    server.script(streams(event(chunk({"content": "Once"})), then=closes_connection))
    with terminal("chat") as user:
        user.see("you> ")
        user.type("Hello?")
        user.see("The stream was interrupted")
        user.see("you> ")
        user.type("Hello?")
        user.see(TEXT)
        user.see("you> ")
        user.type("/quit")
