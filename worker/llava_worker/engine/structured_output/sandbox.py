"""A sandbox for grammars.

Each grammar is first compiled in a `SandboxedProcess`. For some grammars, compilation takes minutes, uses
gigabytes of memory, or crashes the process. If the child process compiles a grammar successfully, the worker
then compiles it too.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any

from llava_worker.engine.structured_output.grammar import GrammarLibrary
from llava_worker.engine.structured_output.to_lark import UnsupportedGrammar
from llava_worker.sandboxed_process import ProcessFailure, ProcessLimits, SandboxedProcess, serve

__all__ = ["GrammarSandbox"]

_MEMORY_BYTES = 2 << 30


class GrammarSandbox:
    """Checks grammars in a child process, which is started on demand."""

    def __init__(self, tokens: Items[bytes], eos_ids: Items[int], *, timeout_s: float) -> None:
        """Create the sandbox. ``timeout_s`` applies to each grammar.

        For the other arguments, see `GrammarLibrary`.
        """
        self._process = SandboxedProcess(
            "llava_worker.engine.structured_output.sandbox",
            ProcessLimits(cpu_s=timeout_s, timeout_s=timeout_s, memory_bytes=_MEMORY_BYTES),
            setup=[[token.hex() for token in tokens], list(eos_ids)],
        )

    def check(self, source: str) -> None:
        """Raise UnsupportedGrammar if the library rejects the grammar, crashes, or takes too long."""
        try:
            message = self._process.request(source)
        except ProcessFailure as failure:
            if failure.reason == "time":
                limit_s = self._process.limits.timeout_s
                reason = f"compiling it takes longer than {limit_s:g} seconds; simplify it"
            else:
                reason = "compiling it crashes the grammar library; simplify it"
            raise UnsupportedGrammar(reason) from failure
        if message:
            raise UnsupportedGrammar(message)

    def close(self) -> None:
        """Kill the child process if there is one. A later `check` starts a new one."""
        self._process.close()


def _open_library(setup: Any) -> Callable[[Any], str]:
    """Return a function that returns a grammar's error message, or "" if it compiles successfully."""
    tokens, eos_ids = setup
    library = GrammarLibrary([bytes.fromhex(token) for token in tokens], eos_ids)

    def compile_error(source: Any) -> str:
        try:
            library.compile(source)
        except UnsupportedGrammar as error:
            return str(error)
        return ""

    return compile_error


if __name__ == "__main__":
    serve(_open_library)
