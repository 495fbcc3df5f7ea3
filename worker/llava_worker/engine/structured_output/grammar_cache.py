"""A cache of compiled grammars. A new grammar is compiled first in the sandbox and then in this process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

from llava_wire.messages.sampling_params import Grammar

from llava_worker.engine.structured_output.grammar import CompiledGrammar, GrammarLibrary
from llava_worker.engine.structured_output.sandbox import GrammarSandbox
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar

__all__ = ["GrammarCache"]

MAX_TEXT_BYTES = 512 << 10
_MAX_CACHED = 64
# Maximum total size of the texts. The size of a compiled grammar is proportional to the size of its text.
_MAX_CACHED_BYTES = 1 << 20


class GrammarCache:
    """A thread-safe cache for one model. It compiles only one grammar at a time.

    The vocabulary and the library are loaded when the first grammar is compiled, because most workers never
    need them.
    """

    def __init__(
        self,
        read_tokens: Callable[[], Items[bytes]],
        eos_ids: Iterable[int],
        *,
        begins_with_space: bool = False,
        timeout_s: float = 5.0,
    ) -> None:
        """Create a cache.

        ``read_tokens`` returns the bytes of each token of the model's vocabulary, in the order of token IDs.
        ``timeout_s`` limits the compilation time in the sandbox. For the other arguments, see
        `GrammarLibrary` and `to_lark`.
        """
        self._read_tokens = read_tokens
        self._eos_ids = sorted(eos_ids)
        self._begins_with_space = begins_with_space
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._opened: tuple[GrammarLibrary, GrammarSandbox] | None = None
        self._cached: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._num_bytes = 0

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Return the compiled grammar. Raises UnsupportedGrammar if the grammar cannot be enforced.

        Compilation usually takes milliseconds, but in the worst case, it takes longer than ``timeout_s``.
        """
        if not self._eos_ids:
            raise UnsupportedGrammar(
                "the model has no end-of-sequence token, so constrained output cannot end"
            )
        num_bytes = len(grammar.text.encode())
        if num_bytes > MAX_TEXT_BYTES:
            raise UnsupportedGrammar(f"it is {num_bytes} bytes; the limit is {MAX_TEXT_BYTES} bytes")
        with self._lock:
            compiled = self._cached.get(grammar)
            if compiled is None:
                library, sandbox = self._open()
                compiled = library.compile(sandbox.build(grammar))
                self._insert(grammar, compiled)
            self._cached.move_to_end(grammar)
            return compiled

    def close(self) -> None:
        """Kill the sandbox process."""
        with self._lock:
            if self._opened is not None:
                self._opened[1].close()

    def _open(self) -> tuple[GrammarLibrary, GrammarSandbox]:
        if self._opened is None:
            tokens = self._read_tokens()
            sandbox = GrammarSandbox(
                tokens,
                self._eos_ids,
                begins_with_space=self._begins_with_space,
                timeout_s=self._timeout_s,
            )
            self._opened = GrammarLibrary(tokens, self._eos_ids), sandbox
        return self._opened

    def _insert(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        self._cached[grammar] = compiled
        self._num_bytes += len(grammar.text)
        while len(self._cached) > _MAX_CACHED or self._num_bytes > _MAX_CACHED_BYTES:
            evicted, _ = self._cached.popitem(last=False)
            self._num_bytes -= len(evicted.text)
