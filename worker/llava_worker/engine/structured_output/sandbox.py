"""A grammar's trial: it is compiled in a child process first, where nothing but the child can be hurt.

Some grammars make the library take minutes or gigabytes, and some have ended the process that compiled them.
The child has no environment, bounded memory, and a few seconds; what it survives is compiled again where it
is needed. It reads one JSON value a line from stdin, first the vocabulary, and answers each with one, until
stdin ends, which is also what happens when the worker dies.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Sequence as Items

from llava_worker.engine.structured_output.grammar import GrammarLibrary
from llava_worker.engine.structured_output.to_lark import GrammarRefused

__all__ = ["GrammarTrial"]

_START_S = 60.0  # a busy machine's bound for starting Python and reading the vocabulary
_MEMORY_BYTES = 2 << 30  # of address space; a vocabulary of 152,000 tokens takes a tenth


class GrammarTrial:
    """One child at a time, started when it is needed. One thread at a time may use it."""

    def __init__(self, tokens: Items[bytes], eos_ids: Items[int], *, timeout_s: float) -> None:
        """As of GrammarLibrary; ``timeout_s`` is for one grammar."""
        self._vocabulary = json.dumps([[token.hex() for token in tokens], list(eos_ids)])
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def judge(self, source: str) -> None:
        """Raises GrammarRefused for a grammar that the library refuses or does not survive."""
        try:
            verdict = _ask(self._child or self._start(), source, self._timeout_s)
        except TimeoutError as error:
            self.close()
            raise GrammarRefused(
                f"compiling it takes longer than {self._timeout_s:g} s: ask for less"
            ) from error
        except (EOFError, OSError) as error:
            self.close()
            raise GrammarRefused("the grammar library does not survive it: ask for less") from error
        if verdict:
            raise GrammarRefused(verdict)

    def close(self) -> None:
        """End the child, if there is one; a later `judge` starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()  # waits, and closes the pipes

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "llava_worker.engine.structured_output.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        _ask(self._child, self._vocabulary, _START_S)
        return self._child


def _ask(child: subprocess.Popen[bytes], line: str, timeout_s: float) -> str:
    """The answer. Raises TimeoutError, EOFError if there is none, OSError if the child is gone."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write((line if line.startswith("[") else json.dumps(line)).encode() + b"\n")
    child.stdin.flush()
    answer, deadline = b"", time.monotonic() + timeout_s
    while not answer.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([child.stdout], [], [], left_s)[0]:
            raise TimeoutError
        piece = os.read(child.stdout.fileno(), 1 << 16)
        if not piece:
            raise EOFError
        answer += piece
    return str(json.loads(answer))


def _serve() -> None:
    """The child."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokens, eos_ids = json.loads(sys.stdin.buffer.readline())
    library = GrammarLibrary([bytes.fromhex(token) for token in tokens], eos_ids)
    _tell("")
    for line in sys.stdin.buffer:
        _tell(_judge(library, json.loads(line)))


def _judge(library: GrammarLibrary, source: str) -> str:
    """The refusal, empty if there is none."""
    try:
        library.compile(source)
    except GrammarRefused as refused:
        return str(refused)
    return ""


def _tell(verdict: str) -> None:
    sys.stdout.buffer.write(json.dumps(verdict).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
