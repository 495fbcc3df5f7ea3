"""The sampler. It samples tokens from the logits of all rows at once.

A sampled token depends only on the logits of its row, the sampling parameters, and its position in the
output. It does not depend on other rows of the batch or on which worker sampled the previous tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows

import msgspec
import numpy as np
import torch
from llava_wire.messages.sampling_params import SamplingParams
from numpy.typing import NDArray
from torch import Tensor

from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.core.sequence_states import SequenceStates
from llava_worker.engine.sampling import logits_processor
from llava_worker.engine.sampling.grammar_bitmask import GrammarBitmask
from llava_worker.engine.sampling.logits_processor import LogitsProcessorState
from llava_worker.engine.sampling.logprobs import Logprobs
from llava_worker.engine.sampling.sampled_tokens import SampledTokens
from llava_worker.engine.sampling.top_k_top_p import truncate
from llava_worker.model.device_copy import copy_to_device

__all__ = ["Sampler", "SamplingRow", "draw", "process", "sample", "uniform"]


class SamplingRow(msgspec.Struct, frozen=True, gc=False):
    """The sampling parameters of one row. ``position`` is the index of the next token in the output.

    ``processor`` has already counted all output tokens. It is None if the sequence uses no logits processors.
    """

    sampling: SamplingParams
    position: int
    processor: LogitsProcessorState | None = None


class Sampler:
    """Samples the tokens of each step and stores the sequences' logits processor states."""

    def __init__(self) -> None:
        self._processors = SequenceStates(_processor_of)

    def sample(
        self,
        logits: Tensor,
        chunks: list[Chunk],
        *,
        bitmask: GrammarBitmask | None,
        vectors: Mapping[int, bytes | None],
    ) -> SampledTokens:
        """Sample one token per row of ``logits``, fp32 [rows, vocab], which is modified in place.

        Each chunk has one row for its last token and one for each draft. ``vectors`` (for embeddings) is
        keyed by row.
        """
        is_valid = logits.amax(-1).isfinite()  # amax propagates NaN
        logits.masked_fill_(~is_valid[:, None], 0)
        logprobs = Logprobs.requested(logits, chunks)
        errors = {} if bitmask is None else bitmask.apply(logits)
        rows = [row for chunk in chunks for row in self._rows(chunk)]
        has_choice = process(logits, rows)
        token_ids = draw(logits, rows)
        picked = None if logprobs is None else logprobs.pick(token_ids)
        return SampledTokens(
            chunks,
            token_ids,
            is_valid=is_valid,
            has_choice=has_choice,
            logprobs=picked,
            errors=errors,
            vectors=vectors,
        )

    def _rows(self, chunk: Chunk) -> list[SamplingRow]:
        """Return a row for the last token of the chunk and one for each draft.

        Each row assumes that all earlier drafts are accepted.
        """
        sequence = chunk.sequence
        processor = self._processors[sequence]
        if processor is not None:
            processor.update(sequence.output_ids)
        position = chunk.end - len(sequence.prompt_ids)
        if not chunk.drafts:
            return [SamplingRow(sequence.sampling, position, processor)]
        return [
            SamplingRow(sequence.sampling, position + index, processor) for index in range(chunk.num_sampled)
        ]


def _processor_of(sequence: Sequence) -> LogitsProcessorState | None:
    return LogitsProcessorState.create(
        sequence.sampling, sequence.prompt_ids, sequence.end_ids, sequence.bad_words
    )


def sample(logits: Tensor, rows: Rows[SamplingRow]) -> Tensor:
    """Sample one token ID per row. ``logits`` is fp32 [rows, vocab] without NaN and is modified in place."""
    process(logits, rows)
    return draw(logits, rows)


def process(logits: Tensor, rows: Rows[SamplingRow]) -> Tensor | None:
    """Apply the logits processors in place.

    Return for each row whether any token can be sampled, bool [rows], or None if no row has a token mask. The
    logits of rows in which no token can be sampled are set to zero.
    """
    processed = [
        (index, row.position, row.processor) for index, row in enumerate(rows) if row.processor is not None
    ]
    if not processed:
        return None
    logits_processor.apply(logits, processed)
    if not any(processor.has_mask for _, _, processor in processed):
        return None
    has_choice = logits.amax(-1) > -torch.inf
    logits.masked_fill_(~has_choice[:, None], 0)
    return has_choice


def draw(logits: Tensor, rows: Rows[SamplingRow]) -> Tensor:
    """Sample one token ID per row from processed logits."""
    token_ids = logits.argmax(dim=-1)
    random = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
    if random:
        row_index = copy_to_device(np.array(random), logits.device)
        token_ids[row_index] = _draw(logits[row_index], [rows[index] for index in random])
    return token_ids


def uniform(seeds: Rows[int], positions: Rows[int]) -> NDArray[np.float64]:
    """Return pseudorandom numbers in [0, 1), computed from (seed, position) with SplitMix64's finalizer."""
    seed = np.array([seed & _MASK for seed in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    bits = _mix(_mix(seed + _GOLDEN) + (position + np.uint64(1)) * _GOLDEN)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


# Temperatures are clamped to this range, which fp32 can represent. At the minimum, sampling is effectively
# greedy; at the maximum, it is effectively uniform.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-30, 1e30
_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply a 64-bit bijection in which every output bit depends on every input bit (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _draw(logits: Tensor, rows: Rows[SamplingRow]) -> Tensor:
    """Draw tokens by inverse transform sampling in the order of token IDs.

    Rounding differs between batch sizes. If tokens were ordered by probability, these differences could swap
    two tokens with nearly equal probabilities, which would shift the intervals of other tokens.
    """
    device = logits.device
    temperatures = [min(max(row.sampling.temperature, _MIN_TEMPERATURE), _MAX_TEMPERATURE) for row in rows]
    temperature = copy_to_device(np.array(temperatures, dtype=np.float32), device)[:, None]
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature  # at most 0, so it cannot overflow
    probabilities = truncate(scaled.double().softmax(-1), [row.sampling for row in rows])
    cumulative = probabilities.cumsum(-1)
    points = uniform([row.sampling.seed for row in rows], [row.position for row in rows])
    targets = copy_to_device(points, device)[:, None] * cumulative[:, -1:]
    token_ids = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    # Due to rounding, a target can equal the total. In this case, use the last token with nonzero
    # probability.
    last = logits.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(-1)
    return torch.minimum(token_ids, last)
