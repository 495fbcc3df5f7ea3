"""Logits processors: logit bias, minimum length, penalties and token masks, applied before sampling.

The order is the same as in vLLM: add ``logit_bias``, mask end tokens until ``min_tokens`` is reached, apply
the repetition penalty (prompt and output, as in transformers), then the frequency and presence penalties
(output only, as in OpenAI's API). Then all tokens except ``allowed_token_ids`` are masked, and all tokens
that would complete one of the ``bad_words``. For a sequence that uses none of these, no state is stored and
nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np
import torch
from llava_wire.messages.sampling_params import SamplingParams
from numpy.typing import NDArray
from torch import Tensor

from llava_worker.engine.core.sequence import has_penalties
from llava_worker.engine.sampling.bad_words import BadWords
from llava_worker.model.device_copy import copy_to_device

__all__ = ["LogitsProcessorState", "apply"]

# Smaller penalties could cause an overflow in fp32 and would have no further effect on the ranking of the
# tokens.
_MIN_REPETITION_PENALTY = 1e-6


class LogitsProcessorState:
    """The logits processor state of one sequence.

    It depends only on the parameters and the tokens of the sequence.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_ids: Items[int],
        end_ids: Iterable[int],
        bad_words: Items[tuple[int, ...]] = (),
    ) -> None:
        """``end_ids`` are the tokens that end the output. ``bad_words`` are token sequences."""
        self.sampling = sampling
        self.allowed_ids = np.array(sampling.allowed_token_ids, dtype=np.int64)
        self._bad_words = BadWords(bad_words) if bad_words else None
        self.excluded_ids = np.array([], dtype=np.int64)  # tokens that would complete a bad word
        self.bias_ids = np.array([token_id for token_id, _ in sampling.logit_bias], dtype=np.int64)
        self.bias = np.array([value for _, value in sampling.logit_bias], dtype=np.float32)
        self.end_ids = np.array(sorted(end_ids), dtype=np.int64)
        self.has_penalties = has_penalties(sampling)
        self._num_counted = 0
        seen = sorted(set(prompt_ids)) if sampling.repetition_penalty != 1 else []
        self._index_of = {token_id: index for index, token_id in enumerate(seen)}
        self._ids = np.array(seen, dtype=np.int64)
        self._counts = np.zeros(len(seen), dtype=np.float32)

    @staticmethod
    def create(
        sampling: SamplingParams,
        prompt_ids: Items[int],
        end_ids: frozenset[int],
        bad_words: Items[tuple[int, ...]] = (),
    ) -> LogitsProcessorState | None:
        """Return a new state, or None if the sequence uses no logits processor."""
        is_needed = (
            sampling.logit_bias
            or (sampling.min_tokens and end_ids)
            or has_penalties(sampling)
            or sampling.allowed_token_ids
            or bad_words
        )
        return LogitsProcessorState(sampling, prompt_ids, end_ids, bad_words) if is_needed else None

    @property
    def has_mask(self) -> bool:
        """Whether the masks can exclude every token."""
        return len(self.allowed_ids) > 0 or self._bad_words is not None

    @property
    def ids(self) -> NDArray[np.int64]:
        """The distinct tokens of the output and, with a repetition penalty, of the prompt."""
        return self._ids[: len(self._index_of)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """For each token in ``ids``, the number of times it occurs in the output."""
        return self._counts[: len(self._index_of)]

    def update(self, output_ids: list[int]) -> None:
        """Process the tokens added to the output since the last call."""
        if self._bad_words is not None:
            self.excluded_ids = self._bad_words.last_ids(output_ids)
        if self.has_penalties:
            for token_id in output_ids[self._num_counted :]:
                self._count(token_id)
            self._num_counted = len(output_ids)

    def _count(self, token_id: int) -> None:
        index = self._index_of.setdefault(token_id, len(self._index_of))
        if index == len(self._ids):  # full: double the capacity for amortized O(1) appends
            size = max(16, index)
            self._ids = np.concatenate([self._ids, np.zeros(size, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(size, dtype=np.float32)])
        self._ids[index] = token_id
        self._counts[index] += 1


def apply(logits: Tensor, rows: Items[tuple[int, int, LogitsProcessorState]]) -> None:
    """Apply logits processors in place to ``logits``, fp32 [rows, vocab].

    Each entry of ``rows`` is (row, position in the output, state).
    """
    biased = [(row, state) for row, _, state in rows if len(state.bias_ids)]
    if biased:
        index = _index(logits, [(row, state.bias_ids) for row, state in biased])
        bias = np.concatenate([state.bias for _, state in biased])
        logits.index_put_(index, copy_to_device(bias, logits.device), accumulate=True)
    too_short = [
        (row, state.end_ids)
        for row, position, state in rows
        if position < state.sampling.min_tokens and len(state.end_ids)
    ]
    if too_short:
        _mask_end(logits, too_short)
    penalized = [(row, state) for row, _, state in rows if state.has_penalties]
    if penalized:
        _penalize(logits, penalized)
    allowed = [(row, state.allowed_ids) for row, _, state in rows if len(state.allowed_ids)]
    if allowed:
        _keep_only(logits, allowed)
    excluded = [(row, state.excluded_ids) for row, _, state in rows if len(state.excluded_ids)]
    if excluded:
        logits.index_put_(_index(logits, excluded), logits.new_full((), -torch.inf))


def _keep_only(logits: Tensor, allowed: Items[tuple[int, NDArray[np.int64]]]) -> None:
    """Mask all tokens of the given rows, except the allowed ones."""
    index = _index(logits, allowed)
    values = logits[index]
    logits[copy_to_device(np.array([row for row, _ in allowed]), logits.device)] = -torch.inf
    logits.index_put_(index, values)


def _mask_end(logits: Tensor, too_short: Items[tuple[int, NDArray[np.int64]]]) -> None:
    """Mask the end tokens, except in rows in which the grammar does not allow any other token."""
    rows = copy_to_device(np.array([row for row, _ in too_short]), logits.device)
    before = logits[rows]
    logits.index_put_(_index(logits, too_short), logits.new_full((), -torch.inf))
    after = logits[rows]
    logits[rows] = after.where(after.amax(-1, keepdim=True) > -torch.inf, before)


def _penalize(logits: Tensor, penalized: Items[tuple[int, LogitsProcessorState]]) -> None:
    index = _index(logits, [(row, state.ids) for row, state in penalized])
    lengths = [len(state.ids) for _, state in penalized]
    samplings = [state.sampling for _, state in penalized]
    counts = copy_to_device(np.concatenate([state.counts for _, state in penalized]), logits.device)

    def per_token(values: Items[float]) -> Tensor:
        return copy_to_device(np.repeat(np.array(values, dtype=np.float32), lengths), logits.device)

    repetition = per_token([max(s.repetition_penalty, _MIN_REPETITION_PENALTY) for s in samplings])
    values = logits[index]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= per_token([s.frequency_penalty for s in samplings]) * counts
    values -= per_token([s.presence_penalty for s in samplings]) * (counts > 0)
    logits.index_put_(index, values)


def _index(logits: Tensor, parts: Items[tuple[int, NDArray[np.int64]]]) -> tuple[Tensor, Tensor]:
    """Return an index (rows, columns) that selects the given tokens of each row."""
    rows = np.repeat([row for row, _ in parts], [len(ids) for _, ids in parts])
    columns = np.concatenate([ids for _, ids in parts])
    return copy_to_device(rows, logits.device), copy_to_device(columns, logits.device)
