"""Grammars at the level of tokens. This is the only module that imports llguidance, the grammar library.

A `CompiledGrammar` is shared by all sequences that use it. A `Matcher` holds the state of one output, which
depends only on the tokens of the output. If a sequence resumes the output of another worker, a new matcher
consumes the tokens of that output. A preempted sequence keeps its matcher.

Tokens are represented by their bytes. Special tokens have no bytes and are never allowed, except for end
tokens, which are allowed once the output is a complete match. Threads can use different matchers
concurrently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import llguidance

from llava_worker.engine.structured_output.grammar_source import NO_MATCH
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CompiledGrammar", "GrammarLibrary", "Matcher"]

_MAX_ERROR_CHARS = 300
_LIMIT = "too many"  # in the library's messages about its limits; others describe its internal state
# maximum number of parser items for one bitmask, for which the other sequences of the step wait. The CPU time
# grows with the square of the number: it is at most 11 ms, and 0.9 s with the library's limit of 50,000.
_MAX_ITEMS = 3000
_MAX_FORCED = 64  # maximum number of rounds of forced tokens at the start; a round may force many tokens
_POSITION = re.compile(
    r"^at \d+\(\d+\): |failed to compile JSON schema: |\(in regex\): |^[Pp]arser [Ee]rror: "
    r"|; try avoiding single-byte/short lexemes| \(in regex.*"
)


class GrammarLibrary:
    """The llguidance library, initialized with one vocabulary. This takes 0.1 s for 32,000 tokens."""

    def __init__(self, tokens: Items[bytes], eos_ids: Items[int]) -> None:
        """Create the library.

        ``tokens[id]`` contains the bytes that the token adds to the text. For special tokens, it is empty.
        ``eos_ids`` must contain at least one token.
        """
        vocabulary = _Vocabulary(tokens, eos_ids)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), n_vocab=len(tokens), eos_token=list(eos_ids)
        )
        self._limits = llguidance.LLParserLimits(verbose_errors=False, step_max_items=_MAX_ITEMS)

    def compile(self, source: str) -> CompiledGrammar:
        """Compile a grammar in Lark syntax, as returned by `to_lark`.

        Raises UnsupportedGrammar if it cannot be enforced. Warnings are treated as errors, because the
        library ignores any part of a grammar that causes a warning.
        """
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        messages = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if messages:
            raise UnsupportedGrammar(_readable(messages[0]))
        _probe(matcher.deep_copy())
        return CompiledGrammar(matcher)


class CompiledGrammar:
    """A compiled grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        """Create a grammar from a matcher in its initial state. The matcher is copied, but never advanced."""
        self._matcher = matcher

    def start(self) -> Matcher:
        """Return a new matcher for an empty output."""
        return Matcher(self._matcher.deep_copy())


class Matcher:
    """The state of one output with respect to its grammar. Once ``error`` is set, no token is allowed."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher
        self._num_consumed = 0

    @property
    def error(self) -> str | None:
        """The reason why the output cannot continue, or None if it can.

        For example, the grammar is too complex, or the output does not match it.
        """
        return _readable(self._matcher.get_error()) if self._matcher.is_error() else None

    def advance(self, output_ids: list[int]) -> None:
        """Consume the tokens added to the output since the last call."""
        new_ids = output_ids[self._num_consumed :]
        self._num_consumed = len(output_ids)
        if new_ids:
            self._matcher.consume_tokens(new_ids)

    def fill(self, row: NDArray[np.int32]) -> None:
        """Fill ``row``, contiguous int32 [vocab / 32], lowest bit first, with one bit per token.

        The bits of allowed tokens are 1.
        """
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)


class _Vocabulary:
    """The vocabulary in the form that llguidance requires."""

    bos_token_id: int | None = None

    def __init__(self, tokens: Items[bytes], eos_ids: Items[int]) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = eos_ids[0]
        self.special_token_ids = [token_id for token_id, text in enumerate(tokens) if not text]
        self._ids = {text: token_id for token_id, text in enumerate(tokens) if text}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes) -> list[int]:
        """Tokenize text, always choosing the longest token that matches.

        If a grammar allows only one text at some position, the library calls this method and then allows only
        the tokens that it returns.
        """
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
        return None, start + 1  # no token matches; skip the byte


def _probe(matcher: llguidance.LLMatcher) -> None:
    """Advance to the first position at which more than one token is allowed.

    Raises UnsupportedGrammar if the matcher fails. Some grammars that are too large, or that no text can
    match, compile without an error and fail only when the matcher reaches that position.
    """
    for _ in range(_MAX_FORCED):
        matcher.compute_bitmask()
        forced = [] if matcher.is_error() else matcher.compute_ff_tokens()
        if not forced or not matcher.consume_tokens(forced):
            break
    if matcher.is_error():
        reason = _readable(matcher.get_error())
        detail = f": {reason}" if _LIMIT in reason.lower() else ""
        raise UnsupportedGrammar(f"{NO_MATCH}, or it is too complex{detail}")


def _readable(message: str) -> str:
    """Return the library's message, omitting positions in the Lark source and quotations from it."""
    text = message.split("\n   1 |")[0]
    before, _, error = text.rpartition("\nerror: ")  # follows a quotation of a regular expression
    words = _POSITION.sub("", error if before else text.split("<")[0])
    return " ".join(words.split())[:_MAX_ERROR_CHARS]
