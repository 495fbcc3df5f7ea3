"""The first steps of a model, made before anybody waits for one: each kind once, at its largest.

They pay for what the first use of a shape costs (kernels chosen, libraries loaded, workspaces taken), show
that the model works, and tell how much memory a step needs, so that the KV cache can have the rest. They run
on a cache of their own, of one block that stands for all: nothing of them is left but the measure.

On a CPU, where a full step of a large model takes seconds and no shape is slow the first time, smaller steps
are made and reckoned up: every activation grows with the number of tokens, tiles or answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llava_worker.engine.core.encoder_cache import VisionCache
from llava_worker.engine.core.kv_cache_size import allocate_cache
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Sampling, Sequence
from llava_worker.engine.model_runner import MAX_TILES_AT_ONCE, ModelRunner
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCacheSpec
from llava_worker.model.llava import Llava
from llava_worker.model.memory_budget import InsufficientMemory
from llava_worker.model.peak_memory import PeakMemory

__all__ = ["StepMemory", "WarmupError", "most_tiles", "warm_up"]

_FEW, _MANY = 8, 24  # tokens of a prompt, on a CPU: chunks of two sizes tell what each token takes
_WAYS = (Sampling(), Sampling(temperature=0.7, top_p=0.9, top_k=50, min_p=0.01, num_logprobs=5))

logger = logging.getLogger(__name__)


class WarmupError(ValueError):
    """The model was loaded but fails at its first step; the message says why."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes that the largest step takes beside weights and caches, by its parts."""

    tower: int
    prefill: int
    decode: int

    @property
    def num_bytes(self) -> int:
        """Pictures are encoded before the decoder runs; its prompts and answers share a step."""
        return max(self.tower, self.prefill + self.decode)


def warm_up(
    model: Llava,
    backend: AttentionBackend,
    cache: KVCacheSpec,
    *,
    max_num_sequences: int,
    max_batch_tokens: int,
) -> StepMemory:
    """Make the steps; ``cache`` bounds the contexts, as that of the engine will.

    Raises InsufficientMemory if a step does not fit, WarmupError if it fails otherwise.
    """
    context = min(model.config.text_config.max_position_embeddings, cache.num_tokens)
    scratch = allocate_cache(cache.within(cache.bytes_per_block), model.device)
    steps = _Steps(ModelRunner(model, scratch, backend, VisionCache(0)), context)
    num_tiles = most_tiles(model, max_batch_tokens)
    try:
        if model.device.type != "cpu":
            return _measure(steps, num_tiles, max_num_sequences, max_batch_tokens)
        return _reckon(steps, num_tiles, max_num_sequences, max_batch_tokens)
    except (RuntimeError, MemoryError) as error:
        if not _is_shortage(error):
            raise WarmupError(f"the model fails at its first step: {error}") from error
        raise InsufficientMemory(
            f"the weights fit on {model.device}, but beside them a step of {max_batch_tokens} tokens and "
            f"{max_num_sequences} answers with a context of {context} does not: let fewer answers be "
            f"computed at once, or bound the KV cache, and with it the context ({error})"
        ) from error


def _measure(steps: _Steps, num_tiles: int, max_num_sequences: int, max_batch_tokens: int) -> StepMemory:
    for size in _sizes_up_to(num_tiles):
        tower = steps.encode(size)
    for size in _sizes_up_to(max_num_sequences):
        decode = steps.decode(size)
    return StepMemory(tower, steps.prefill(max_batch_tokens), decode)


def _reckon(steps: _Steps, num_tiles: int, max_num_sequences: int, max_batch_tokens: int) -> StepMemory:
    """From one tile, one answer and short chunks of a prompt."""
    tower, decode = steps.encode(1) * num_tiles, steps.decode(1) * max_num_sequences
    if max_batch_tokens <= _MANY:
        return StepMemory(tower, steps.prefill(max_batch_tokens), decode)
    few, many = steps.prefill(_FEW), steps.prefill(_MANY)
    more = (many - few) * (max_batch_tokens - _MANY) // (_MANY - _FEW)
    return StepMemory(tower, many + more, decode)


class _Steps:
    """Steps over one sequence's block after another, all of them the same block; bytes of each one's peak."""

    def __init__(self, runner: ModelRunner, context: int) -> None:
        self._runner = runner
        self._context = context
        self._prompt = [0] * context
        self._table = [0] * -(-context // runner.cache.block_size)

    def encode(self, num_tiles: int) -> int:
        model = self._runner.model
        side = model.config.image_layout().side
        with torch.inference_mode(), PeakMemory(model.device) as peak:
            tiles = torch.zeros((num_tiles, side, side, 3), dtype=torch.uint8, device=model.device)
            model.encode(tiles)
        return peak.num_bytes

    def decode(self, num_rows: int) -> int:
        """A token each for answers whose context is as long as it gets; the last is sampled."""
        return self._run([self._chunk(1, _WAYS[(row - num_rows) % 2]) for row in range(num_rows)])

    def prefill(self, num_tokens: int) -> int:
        """The last chunk of a prompt that is as long as it gets."""
        return self._run([self._chunk(min(num_tokens, self._context), _WAYS[0])])

    def _chunk(self, num_tokens: int, sampling: Sampling) -> Chunk:
        sequence = Sequence(seq_id="", prompt_ids=self._prompt, max_new_tokens=1, sampling=sampling)
        sequence.block_table = self._table
        return Chunk(sequence, self._context - num_tokens, self._context)

    def _run(self, chunks: list[Chunk]) -> int:
        with PeakMemory(self._runner.model.device) as peak:
            results = self._runner.run(chunks)
        if any(choice.token_id is None for result in results for choice in result.choices):
            logger.warning("the model's output in a first step is not a number: are its weights whole?")
        return peak.num_bytes


def most_tiles(model: Llava, max_batch_tokens: int) -> int:
    """That go through the tower at once: of as many pictures as a step encodes, or of one large one."""
    layout = model.config.image_layout()
    largest = 1 + max((width * height // layout.side**2 for width, height in layout.grid), default=0)
    return min(MAX_TILES_AT_ONCE, max(largest, max_batch_tokens // model.config.tokens_per_tile))


def _sizes_up_to(most: int) -> Iterator[int]:
    """1, 2, 4 and so on, and the largest last."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


def _is_shortage(error: Exception) -> bool:
    """Of memory. Torch has a type for a GPU's only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
