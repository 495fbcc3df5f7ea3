"""A cache of compiled grammars. A new grammar is compiled first in a sandbox and then in this process.

Different grammars are compiled concurrently, in as many sandboxes as there are callers, and no lookup waits
for a compilation. Concurrent calls for the same grammar wait for one compilation. Rejections are cached for a
short time, so that repeated requests do not repeat a compilation that takes seconds.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from llava_wire.messages.sampling_params import Grammar

from llava_worker.engine.structured_output.grammar import CompiledGrammar, GrammarLibrary
from llava_worker.engine.structured_output.sandbox import GrammarSandbox
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar

__all__ = ["GrammarCache"]

MAX_TEXT_BYTES = 512 << 10
_MAX_CACHED = 64
# Maximum total size of the texts. The size of a compiled grammar is proportional to the size of its text.
_MAX_CACHED_BYTES = 1 << 20
_REJECTION_S = 60.0  # time for which a rejection is cached


@dataclass(frozen=True, slots=True)
class _Result:
    """A compiled grammar, or the reason why it cannot be enforced."""

    compiled: CompiledGrammar | None
    rejection: UnsupportedGrammar | None = None
    created_at: float = field(default_factory=time.monotonic)

    def unwrap(self) -> CompiledGrammar:
        """Return the compiled grammar. Raises UnsupportedGrammar."""
        if self.compiled is None:
            assert self.rejection is not None
            raise _copy(self.rejection)
        return self.compiled


class GrammarCache:
    """A thread-safe cache for one model.

    The vocabulary and the library are loaded when the first grammar is compiled, because most workers never
    need them.
    """

    def __init__(
        self,
        read_tokens: Callable[[], Items[bytes]],
        eos_ids: Iterable[int],
        *,
        begins_with_space: bool = False,
        cpu_s: float = 5.0,
    ) -> None:
        """Create a cache.

        ``read_tokens`` returns the bytes of each token of the model's vocabulary, in the order of token IDs.
        ``cpu_s`` limits the CPU time of a compilation in the sandbox. For the other arguments, see
        `GrammarLibrary` and `to_lark`.
        """
        self._read_tokens = read_tokens
        self._eos_ids = sorted(eos_ids)
        self._begins_with_space = begins_with_space
        self._cpu_s = cpu_s
        self._lock = threading.Lock()  # held only for short operations, except for _opening
        self._opening = threading.Lock()
        self._library: GrammarLibrary | None = None
        self._idle_sandboxes: list[GrammarSandbox] = []
        self._compiling: dict[Grammar, Future[_Result]] = {}
        self._cached: OrderedDict[Grammar, _Result] = OrderedDict()
        self._num_bytes = 0

    def find(self, grammar: Grammar) -> CompiledGrammar | None:
        """Return the compiled grammar, or None if it is not cached. Does not wait.

        Raises UnsupportedGrammar if the grammar was rejected recently.
        """
        with self._lock:
            result = self._cached.get(grammar)
            if result is None:
                return None
            if result.compiled is None and time.monotonic() - result.created_at > _REJECTION_S:
                self._remove(grammar)
                return None
            self._cached.move_to_end(grammar)
        return result.unwrap()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Return the compiled grammar. Raises UnsupportedGrammar if the grammar cannot be enforced.

        Compilation usually takes milliseconds, but in the worst case, it takes longer than ``cpu_s``.
        """
        self._check(grammar)
        if (compiled := self.find(grammar)) is not None:
            return compiled
        with self._lock:
            running = self._compiling.get(grammar)
            if running is None:
                own = self._compiling[grammar] = Future[_Result]()
        if running is not None:
            return running.result().unwrap()
        try:
            result = self._compile(grammar)
        except BaseException as error:
            own.set_exception(error)
            raise
        else:
            own.set_result(result)
            self._insert(grammar, result)
        finally:
            with self._lock:
                del self._compiling[grammar]
        return result.unwrap()

    def close(self) -> None:
        """Kill the sandbox processes, which must be idle."""
        with self._lock:
            sandboxes, self._idle_sandboxes = self._idle_sandboxes, []
        for sandbox in sandboxes:
            sandbox.close()

    def _check(self, grammar: Grammar) -> None:
        if not self._eos_ids:
            raise UnsupportedGrammar(
                "the model has no end-of-sequence token, so constrained output cannot end"
            )
        num_bytes = len(grammar.text.encode())
        if num_bytes > MAX_TEXT_BYTES:
            raise UnsupportedGrammar(f"it is {num_bytes} bytes; the limit is {MAX_TEXT_BYTES} bytes")

    def _compile(self, grammar: Grammar) -> _Result:
        with self._opening:
            if self._library is None:
                self._library = GrammarLibrary(self._read_tokens(), self._eos_ids)
        try:
            with self._sandbox() as sandbox:
                source = sandbox.build(grammar)
            return _Result(self._library.compile(source))
        except UnsupportedGrammar as error:
            return _Result(None, _copy(error))

    @contextmanager
    def _sandbox(self) -> Iterator[GrammarSandbox]:
        with self._lock:
            sandbox = self._idle_sandboxes.pop() if self._idle_sandboxes else None
        if sandbox is None:
            sandbox = GrammarSandbox(
                self._read_tokens(),
                self._eos_ids,
                begins_with_space=self._begins_with_space,
                cpu_s=self._cpu_s,
            )
        try:
            yield sandbox
        finally:
            with self._lock:
                self._idle_sandboxes.append(sandbox)

    def _insert(self, grammar: Grammar, result: _Result) -> None:
        with self._lock:
            self._cached[grammar] = result
            self._num_bytes += len(grammar.text)
            while len(self._cached) > _MAX_CACHED or self._num_bytes > _MAX_CACHED_BYTES:
                self._remove(next(iter(self._cached)))

    def _remove(self, grammar: Grammar) -> None:
        del self._cached[grammar]
        self._num_bytes -= len(grammar.text)


def _copy(error: UnsupportedGrammar) -> UnsupportedGrammar:
    """Return the error without its traceback, which grows each time that an exception is raised."""
    return UnsupportedGrammar(str(error), param=error.param, owner=error.owner)
