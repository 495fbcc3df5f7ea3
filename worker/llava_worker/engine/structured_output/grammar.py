"""Grammars over tokens. The only module that imports llguidance, the grammar library.

A `Grammar` is compiled once and shared; a `Matcher` is the state of one output. A matcher is a function of
the output's tokens: to continue another worker's output a new matcher consumes its tokens, and a preempted
sequence keeps its matcher.

Tokens are bytes here. A special token has none and is never allowed, except the end tokens, which are allowed
where the text so far is complete. Different matchers may be used in different threads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import llguidance

from llava_worker.engine.structured_output.to_lark import UnsupportedGrammar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Grammar", "GrammarLibrary", "Matcher"]

_MAX_ERROR_CHARS = 300
_MAX_FORCED = 64  # steps without a choice at the beginning; each may be many tokens
_POSITION = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: |\(in regex\): |^Parser Error: ")


class GrammarLibrary:
    """llguidance over one vocabulary. Opening it takes some 0.1 s for 32,000 tokens."""

    def __init__(self, tokens: Items[bytes], eos_ids: Items[int]) -> None:
        """``tokens[id]`` is what a token adds to the text, empty for special ones; at least one end token."""
        vocabulary = _Vocabulary(tokens, eos_ids)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), n_vocab=len(tokens), eos_token=list(eos_ids)
        )
        self._limits = llguidance.LLParserLimits(verbose_errors=False)

    def compile(self, source: str) -> Grammar:
        """``source`` is Lark, as `to_lark` writes it. Raises UnsupportedGrammar.

        The library ignores what it warns about, so warnings are errors too.
        """
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        messages = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if messages:
            raise UnsupportedGrammar(_readable(messages[0]))
        _probe(matcher.deep_copy())
        return Grammar(matcher)


class Grammar:
    """A compiled grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        """``matcher`` has taken nothing, and never will."""
        self._matcher = matcher

    def start(self) -> Matcher:
        """A matcher at the beginning of an output."""
        return Matcher(self._matcher.deep_copy())


class Matcher:
    """The state of one output in its grammar. After ``error`` is set nothing is allowed any more."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher
        self._num_consumed = 0

    @property
    def error(self) -> str | None:
        """Why the output cannot continue: the grammar became too complex, or the tokens do not match it."""
        return _readable(self._matcher.get_error()) if self._matcher.is_error() else None

    def advance(self, output_ids: list[int]) -> None:
        """Consume the tokens that were added to the output since the last call."""
        new_ids = output_ids[self._num_consumed :]
        self._num_consumed = len(output_ids)
        if new_ids:
            self._matcher.consume_tokens(new_ids)

    def fill(self, row: NDArray[np.int32]) -> None:
        """Write a bit for each token, lowest first, 1 if it may come next; int32 [vocab / 32], contiguous."""
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)


class _Vocabulary:
    """The vocabulary as llguidance asks for it."""

    bos_token_id: int | None = None

    def __init__(self, tokens: Items[bytes], eos_ids: Items[int]) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = eos_ids[0]
        self.special_token_ids = [token_id for token_id, text in enumerate(tokens) if not text]
        self._ids = {text: token_id for token_id, text in enumerate(tokens) if text}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of exactly these bytes, each as long as can be: where a grammar leaves one text only, the
        library asks for its tokens and allows no others."""
        token_ids: list[int] = []
        start = 0
        while start < len(text):
            token_id, start = self._longest_at(text, start)
            if token_id is not None:
                token_ids.append(token_id)
        return token_ids

    def _longest_at(self, text: bytes, start: int) -> tuple[int | None, int]:
        for end in range(min(start + self._longest, len(text)), start, -1):
            token_id = self._ids.get(text[start:end])
            if token_id is not None:
                return token_id, end
        return None, start + 1  # a byte that the vocabulary cannot write


def _probe(matcher: llguidance.LLMatcher) -> None:
    """Advance to the first position with a choice: some grammars that match no text, and some that are too
    large, fail only there. Raises UnsupportedGrammar."""
    for _ in range(_MAX_FORCED):
        matcher.compute_bitmask()
        forced = [] if matcher.is_error() else matcher.compute_ff_tokens()
        if not forced or not matcher.consume_tokens(forced):
            break
    if matcher.is_error():
        raise UnsupportedGrammar(f"no answer fits, or too many do: {_readable(matcher.get_error())}")


def _readable(message: str) -> str:
    """The library's message without positions in and quotes from the generated Lark."""
    words = _POSITION.sub("", message.split("\n   1 |")[0].split("<")[0])
    return " ".join(words.split())[:_MAX_ERROR_CHARS]
