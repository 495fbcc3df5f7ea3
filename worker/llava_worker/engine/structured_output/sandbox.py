"""A sandbox for grammars.

Each grammar is first compiled in a child process, which can crash without affecting the worker. For some
grammars, compilation takes minutes, uses gigabytes of memory, or crashes the process. The child process has
limited memory and only a few seconds per grammar, and its only environment variable is PYTHONPATH. If the
child compiles a grammar successfully, the worker then compiles it too.

The child reads one JSON value per line from stdin, starting with the vocabulary. It replies to each value
with one line on stdout. The child exits when its stdin is closed, which also happens if the worker exits.
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
from llava_worker.engine.structured_output.to_lark import UnsupportedGrammar

__all__ = ["GrammarSandbox"]

_START_S = 60.0  # timeout for starting Python and reading the vocabulary, even on a busy machine
_MEMORY_BYTES = 2 << 30  # limit on the address space; a vocabulary of 152,000 tokens uses one tenth of it


class GrammarSandbox:
    """Manages at most one child process, which is started on demand. The sandbox is not thread-safe."""

    def __init__(self, tokens: Items[bytes], eos_ids: Items[int], *, timeout_s: float) -> None:
        """Create the sandbox. ``timeout_s`` applies to each grammar.

        For the other arguments, see `GrammarLibrary`.
        """
        self._vocabulary = json.dumps([[token.hex() for token in tokens], list(eos_ids)])
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def check(self, source: str) -> None:
        """Raise UnsupportedGrammar if the library rejects the grammar, crashes, or takes too long."""
        try:
            message = _request(self._child or self._start(), source, self._timeout_s)
        except TimeoutError as error:
            self.close()
            raise UnsupportedGrammar(
                f"compiling it takes longer than {self._timeout_s:g} seconds; simplify it"
            ) from error
        except (EOFError, OSError) as error:
            self.close()
            raise UnsupportedGrammar("compiling it crashes the grammar library; simplify it") from error
        if message:
            raise UnsupportedGrammar(message)

    def close(self) -> None:
        """Kill the child process if there is one. A later `check` starts a new one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()  # waits until the child has exited, and closes the pipes

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "llava_worker.engine.structured_output.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        _request(self._child, self._vocabulary, _START_S)
        return self._child


def _request(child: subprocess.Popen[bytes], line: str, timeout_s: float) -> str:
    """Send a line and return the reply.

    Raises TimeoutError if the child does not reply in time, EOFError if the child closes its stdout, and
    OSError if the child has already exited.
    """
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write((line if line.startswith("[") else json.dumps(line)).encode() + b"\n")
    child.stdin.flush()
    reply, deadline = b"", time.monotonic() + timeout_s
    while not reply.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([child.stdout], [], [], left_s)[0]:
            raise TimeoutError
        piece = os.read(child.stdout.fileno(), 1 << 16)
        if not piece:
            raise EOFError
        reply += piece
    return str(json.loads(reply))


def _serve() -> None:
    """Compile grammars from stdin in the child process."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokens, eos_ids = json.loads(sys.stdin.buffer.readline())
    library = GrammarLibrary([bytes.fromhex(token) for token in tokens], eos_ids)
    _reply("")
    for line in sys.stdin.buffer:
        _reply(_compile_error(library, json.loads(line)))


def _compile_error(library: GrammarLibrary, source: str) -> str:
    """Return the error message, or an empty string if the grammar compiles successfully."""
    try:
        library.compile(source)
    except UnsupportedGrammar as error:
        return str(error)
    return ""


def _reply(message: str) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
