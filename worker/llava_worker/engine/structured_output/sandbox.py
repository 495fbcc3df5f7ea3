"""A sandbox for grammars.

Each grammar is first built and compiled in a `SandboxedProcess`. For some grammars, this takes minutes, uses
gigabytes of memory, or crashes the process. If the child process compiles a grammar successfully, the worker
then compiles the source that the child returned.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any

import msgspec
from llava_wire.messages.sampling_params import Grammar

from llava_worker.engine.structured_output.grammar import GrammarLibrary
from llava_worker.engine.structured_output.grammar_source import build_source
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar
from llava_worker.sandboxed_process import ProcessFailure, ProcessLimits, SandboxedProcess, serve

__all__ = ["GrammarSandbox"]

_MEMORY_BYTES = 2 << 30
_TIMEOUT_S = 60.0  # for a machine so busy that the CPU time limit is not reached


class GrammarSandbox:
    """Builds grammars in a child process, which is started on demand."""

    def __init__(
        self, tokens: Items[bytes], eos_ids: Items[int], *, begins_with_space: bool, cpu_s: float
    ) -> None:
        """Create the sandbox. ``cpu_s`` limits the CPU time for each grammar.

        For the other arguments, see `GrammarLibrary` and `to_lark`.
        """
        self._process = SandboxedProcess(
            "llava_worker.engine.structured_output.sandbox",
            ProcessLimits(cpu_s=cpu_s, timeout_s=max(_TIMEOUT_S, cpu_s), memory_bytes=_MEMORY_BYTES),
            setup=[[token.hex() for token in tokens], list(eos_ids), begins_with_space],
            has_low_priority=True,
        )

    def build(self, grammar: Grammar) -> str:
        """Return the source of the grammar in Lark.

        Raises UnsupportedGrammar if the library rejects the grammar, crashes, or takes too long.
        """
        try:
            reply = self._process.request(msgspec.to_builtins(grammar))
        except ProcessFailure as failure:
            if failure.reason == "time":
                limit_s = self._process.limits.cpu_s
                reason = f"compiling it takes more than {limit_s:g} seconds of CPU time; simplify it"
            else:
                reason = "compiling it crashes the grammar library; simplify it"
            raise UnsupportedGrammar(reason) from failure
        if "source" not in reply:
            raise UnsupportedGrammar(reply["reason"], param=reply["param"], owner=reply["owner"])
        return str(reply["source"])

    def close(self) -> None:
        """Kill the child process if there is one. A later `build` starts a new one."""
        self._process.close()


def _open_builder(setup: Any) -> Callable[[Any], dict[str, str]]:
    """Return a function that builds a grammar. It returns the source, or the fields of UnsupportedGrammar."""
    tokens, eos_ids, begins_with_space = setup
    library = GrammarLibrary([bytes.fromhex(token) for token in tokens], eos_ids)

    def find_error(source: str) -> str:
        try:
            library.compile(source)
        except UnsupportedGrammar as error:
            return str(error)
        return ""

    def build(request: Any) -> dict[str, str]:
        grammar = msgspec.convert(request, Grammar)
        try:
            return {"source": build_source(grammar, find_error, begins_with_space=begins_with_space)}
        except UnsupportedGrammar as error:
            return {"reason": str(error), "param": error.param, "owner": error.owner}

    return build


if __name__ == "__main__":
    serve(_open_builder)
