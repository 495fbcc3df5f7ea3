"""Bitmasks of the tokens that grammars allow.

They are computed during the forward pass and applied to its logits. All previous tokens of a sequence are
known when the forward pass starts, so the bitmask for the next token can be computed while the pass runs. The
grammar library and torch both release the GIL, so bitmasks do not make a step slower if a CPU core is idle.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from llava_wire.messages.event import ErrorCode, JobError
from torch import Tensor

from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.core.sequence_states import SequenceStates
from llava_worker.engine.structured_output.grammar import Matcher

__all__ = ["BitmaskBuilder", "GrammarBitmask"]

_NUM_THREADS = 4


class GrammarBitmask:
    """The bitmasks of one step, one for each row of logits that belongs to a sequence with a grammar."""

    def __init__(
        self, pool: ThreadPoolExecutor, rows: list[tuple[int, Sequence, Matcher]], vocab_size: int
    ) -> None:
        """Start filling the bitmasks. The sequences must not be modified until `wait` or `apply` returns."""
        self._rows = rows
        self._vocab_size = vocab_size
        self._bits = np.full((len(rows), (vocab_size + 31) // 32), -1, dtype=np.int32)
        self._work: list[Future[None]] = [pool.submit(self._fill, index) for index in range(len(rows))]

    def wait(self) -> None:
        """Wait until all bitmasks are filled. After that, no thread accesses the sequences."""
        for work in self._work:
            work.result()

    def apply(self, logits: Tensor) -> dict[int, JobError]:
        """Mask disallowed tokens in ``logits``, fp32 [rows, vocab].

        Returns the errors of failed grammars, keyed by row. The rows of these grammars are not masked.
        """
        self.wait()
        words = torch.from_numpy(self._bits).to(logits.device)
        bits = torch.arange(32, dtype=torch.int32, device=logits.device)
        allowed = ((words[:, :, None] >> bits) & 1).flatten(1)[:, : self._vocab_size]
        rows = [row for row, _, _ in self._rows]
        logits[rows] = logits[rows].masked_fill(allowed == 0, -torch.inf)
        return {
            row: _grammar_error(sequence, matcher.error)
            for row, sequence, matcher in self._rows
            if matcher.error is not None
        }

    def _fill(self, index: int) -> None:
        _, sequence, matcher = self._rows[index]
        bits = self._bits[index]
        matcher.advance(sequence.output_ids)
        if matcher.error is None:
            matcher.fill(bits)
        if matcher.error is not None:
            bits[:] = -1


def _grammar_error(sequence: Sequence, reason: str) -> JobError:
    grammar = sequence.sampling.grammar
    param = (grammar and grammar.param) or "response_format"
    return JobError(ErrorCode.INVALID_REQUEST, f"The grammar failed during generation: {reason}.", param)


class BitmaskBuilder:
    """Stores the matchers of all sequences and fills the bitmasks of each step in a thread pool.

    The pool is created when a grammar is used for the first time.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._matchers = SequenceStates(_matcher_of)

    def start(self, sequences: Items[Sequence], vocab_size: int) -> GrammarBitmask | None:
        """Start filling the bitmasks of a step.

        ``sequences`` contains the sequence to which each row of logits belongs. Returns None if no sequence
        has a grammar.
        """
        rows = [
            (row, sequence, matcher)
            for row, sequence in enumerate(sequences)
            if sequence.grammar is not None and (matcher := self._matchers[sequence]) is not None
        ]
        if not rows:
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar-bitmask")
        return GrammarBitmask(self._pool, rows, vocab_size)


def _matcher_of(sequence: Sequence) -> Matcher | None:
    return None if sequence.grammar is None else sequence.grammar.start()
