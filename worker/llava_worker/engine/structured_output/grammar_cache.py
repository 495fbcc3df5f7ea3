"""From what a request asks for to a compiled grammar: tried first, then compiled once and remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

from llava_worker.engine.structured_output.grammar import Grammar, GrammarLibrary
from llava_worker.engine.structured_output.sandbox import GrammarTrial
from llava_worker.engine.structured_output.to_lark import GrammarKind, GrammarRefused, grammar_source

__all__ = ["Grammars"]

MAX_TEXT_BYTES = 64 << 10
_MAX_REMEMBERED = 64
_MAX_REMEMBERED_BYTES = 1 << 20  # of their texts; what is compiled is larger in proportion


class Grammars:
    """The grammars of one model. Any thread may call it; one grammar is compiled at a time.

    The vocabulary is read and the library opened with the first grammar: most workers never see one.
    """

    def __init__(
        self,
        read_tokens: Callable[[], Items[bytes]],
        eos_ids: Iterable[int],
        *,
        begins_with_space: bool = False,
        timeout_s: float = 5.0,
    ) -> None:
        """``read_tokens`` gives each token's bytes, by id, for the model's whole vocabulary; for the rest see
        GrammarLibrary and `grammar_source`. ``timeout_s`` bounds the trial of one grammar."""
        self._read_tokens = read_tokens
        self._eos_ids = sorted(eos_ids)
        self._begins_with_space = begins_with_space
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._opened: tuple[GrammarLibrary, GrammarTrial] | None = None
        self._remembered: OrderedDict[str, Grammar] = OrderedDict()
        self._num_bytes = 0

    def compile(self, kind: GrammarKind, text: str) -> Grammar:
        """Takes milliseconds as a rule, ``timeout_s`` and more at worst. Raises GrammarRefused."""
        if not self._eos_ids:
            raise GrammarRefused("this model has no end token, so no answer to a grammar could end")
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise GrammarRefused(f"it has {len(text.encode())} bytes; the limit is {MAX_TEXT_BYTES}")
        source = grammar_source(kind, text, begins_with_space=self._begins_with_space)
        with self._lock:
            grammar = self._remembered.get(source)
            if grammar is None:
                library, trial = self._open()
                trial.judge(source)
                grammar = library.compile(source)
                self._remember(source, grammar)
            self._remembered.move_to_end(source)
            return grammar

    def close(self) -> None:
        """End the trial's process."""
        with self._lock:
            if self._opened is not None:
                self._opened[1].close()

    def _open(self) -> tuple[GrammarLibrary, GrammarTrial]:
        if self._opened is None:
            tokens = self._read_tokens()
            trial = GrammarTrial(tokens, self._eos_ids, timeout_s=self._timeout_s)
            self._opened = GrammarLibrary(tokens, self._eos_ids), trial
        return self._opened

    def _remember(self, source: str, grammar: Grammar) -> None:
        self._remembered[source] = grammar
        self._num_bytes += len(source)
        while len(self._remembered) > _MAX_REMEMBERED or self._num_bytes > _MAX_REMEMBERED_BYTES:
            forgotten, _ = self._remembered.popitem(last=False)
            self._num_bytes -= len(forgotten)
