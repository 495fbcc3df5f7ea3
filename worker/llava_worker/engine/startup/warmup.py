"""Warm-up: runs the largest step of each kind before the worker announces that the model is ready.

The warm-up steps have three purposes: they trigger the initialization that happens when a shape is first used
(kernel selection, libraries, workspaces), check that the model works, and measure the peak memory of a step,
which determines the size of the KV cache. They use a temporary KV cache with a single block.

On a CPU, a full step of a large model takes seconds, and the first use of a shape is no slower than later
uses. Therefore, smaller steps are measured and the results are extrapolated. This works because the size of
all activations is linear in the number of tokens, tiles or sequences.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from llava_wire.messages.sampling_params import SamplingParams

from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.kv_cache_size import allocate_cache
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import GREEDY, Sequence
from llava_worker.engine.model_runner import MAX_TILES_PER_PASS, ModelRunner
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCacheSpec
from llava_worker.model.llava import Llava
from llava_worker.model.memory_estimate import InsufficientMemory
from llava_worker.model.peak_memory import PeakMemory

__all__ = [
    "StepMemory",
    "WarmupError",
    "WarmupSteps",
    "check_decode",
    "max_tiles_per_step",
    "sizes_up_to",
    "step_errors",
    "warm_up",
]

_FEW, _MANY = 8, 24  # chunk sizes measured on a CPU to determine the memory per prompt token
_PROMPT_TOKENS = 1024  # a prompt with one image and some text
_SAMPLINGS = (
    GREEDY,
    SamplingParams(seed=0, temperature=0.7, top_p=0.9, top_k=50, min_p=0.01, num_logprobs=5),
)

logger = logging.getLogger(__name__)


class WarmupError(ValueError):
    """Raised if the first step of a loaded model fails."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """The memory that the largest step requires, in bytes, excluding weights and caches."""

    tower: int
    prefill: int
    decode: int

    @property
    def num_bytes(self) -> int:
        """The peak memory.

        Images are encoded before the decoder runs, but a step can contain both prefill and decode.
        """
        return max(self.tower, self.prefill + self.decode)


def warm_up(steps: WarmupSteps, *, max_num_sequences: int, max_batch_tokens: int) -> StepMemory:
    """Run the warm-up steps and measure how much memory they need.

    Raises InsufficientMemory if a step does not fit in memory, and WarmupError if a step fails for another
    reason.
    """
    num_tiles = max_tiles_per_step(steps.model, max_batch_tokens)
    measure = _extrapolate if steps.model.device.type == "cpu" else _measure_largest
    with step_errors(steps, f"{max_batch_tokens} tokens and {max_num_sequences} sequences"):
        memory = measure(steps, num_tiles, max_num_sequences, max_batch_tokens)
    return replace(memory, tower=memory.tower + _merge_bytes(steps.model))


def check_decode(steps: WarmupSteps) -> None:
    """Decode one token for two sequences, which initializes the sampler and checks that the model works.

    Raises the same exceptions as `warm_up`.
    """
    with step_errors(steps, "2 sequences"):
        steps.decode(2)  # one greedy and one random


@contextmanager
def step_errors(steps: WarmupSteps, size: str) -> Iterator[None]:
    """Convert errors of a warm-up step to InsufficientMemory or WarmupError. ``size`` describes the step."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise WarmupError(f"The first step of the model failed: {error}") from error
        raise InsufficientMemory(
            f"The weights fit on {steps.model.device}, but the remaining memory is not enough for a step of "
            f"{size} with a context of {steps.context} tokens. Reduce the maximum number of sequences, or "
            f"limit the KV cache, which also limits the context. ({error})"
        ) from error


def _measure_largest(
    steps: WarmupSteps, num_tiles: int, max_num_sequences: int, max_batch_tokens: int
) -> StepMemory:
    for size in sizes_up_to(num_tiles):
        tower = steps.encode(size)
    for size in sizes_up_to(max_num_sequences):
        decode = steps.decode(size)
    for size in sizes_up_to(max_batch_tokens):
        prefill = steps.prefill(size)
    return StepMemory(tower, prefill, decode)


def _extrapolate(
    steps: WarmupSteps, num_tiles: int, max_num_sequences: int, max_batch_tokens: int
) -> StepMemory:
    """Extrapolate from measurements with one tile, one sequence and short prompt chunks."""
    tower, decode = steps.encode(1) * num_tiles, steps.decode(1) * max_num_sequences
    if max_batch_tokens <= _MANY:
        return StepMemory(tower, steps.prefill(max_batch_tokens), decode)
    few, many = steps.prefill(_FEW), steps.prefill(_MANY)
    more = (many - few) * (max_batch_tokens - _MANY) // (_MANY - _FEW)
    return StepMemory(tower, many + more, decode)


class WarmupSteps:
    """Runs warm-up steps and returns their peak memory in bytes.

    The temporary KV cache has only one block, so every entry of every block table refers to it. As in the
    engine, the size of the planned ``cache`` limits the context.
    """

    def __init__(self, model: Llava, backend: AttentionBackend, cache: KVCacheSpec) -> None:
        self.model = model
        self.context = min(model.config.text_config.max_position_embeddings, cache.num_tokens)
        self.scratch = allocate_cache(cache.within(cache.bytes_per_block), model.device)
        self._runner = ModelRunner(model, self.scratch, backend, EncoderCache(0))
        self._prompt = [0] * self.context
        self._table = [0] * -(-self.context // cache.block_size)

    def encode(self, num_tiles: int) -> int:
        model = self.model
        side = model.config.image_layout().side
        with torch.inference_mode(), PeakMemory(model.device) as peak:
            tiles = torch.zeros((num_tiles, side, side, 3), dtype=torch.uint8, device=model.device)
            model.encode(tiles)
        return peak.num_bytes

    def decode(self, num_rows: int) -> int:
        """Decode one token per sequence with the longest possible context.

        Greedy and random sampling alternate.
        """
        return self._run([self._chunk(1, _SAMPLINGS[(row - num_rows) % 2]) for row in range(num_rows)])

    def prefill(self, num_tokens: int) -> int:
        """Compute the last chunk of a prompt that has the maximum length, or several whole prompts."""
        full, rest = divmod(num_tokens, self.context)
        lengths = [self.context] * full + [rest] * (rest > 0)
        return self._run([self._chunk(length, _SAMPLINGS[0]) for length in lengths])

    def prompts(self, num_tokens: int) -> int:
        """Compute whole prompts of typical length, in one step of ``num_tokens`` tokens."""
        length = min(_PROMPT_TOKENS, self.context)
        lengths = [min(length, num_tokens - start) for start in range(0, num_tokens, length)]
        return self._run([self._chunk(length, _SAMPLINGS[0], end=length) for length in lengths])

    def _chunk(self, num_tokens: int, sampling: SamplingParams, *, end: int | None = None) -> Chunk:
        """Return the last ``num_tokens`` tokens of a prompt that ends at ``end``, by default the maximum."""
        prompt = self._prompt[:end]
        sequence = Sequence(seq_id="", prompt_ids=prompt, max_new_tokens=1, sampling=sampling)
        sequence.block_table = self._table
        return Chunk(sequence, len(prompt) - num_tokens, len(prompt))

    def _run(self, chunks: list[Chunk]) -> int:
        with PeakMemory(self.model.device) as peak:
            results = self._runner.run(chunks)
        if any(token.token_id is None for result in results for token in result.tokens):
            logger.warning("the model produced NaN or infinity during warm-up; check the weights")
        return peak.num_bytes


def _merge_bytes(model: Llava) -> int:
    """Return the memory for merging the features of the largest image, in addition to the tower's memory.

    The features of all tiles are copied when passes of the tower are joined, and when tiles are arranged in a
    grid.
    """
    num_tiles = _num_grid_tiles(model)
    size = model.config.text_config.hidden_size * model.dtype.itemsize
    return 2 * (1 + num_tiles) * model.config.tokens_per_tile * size if num_tiles else 0


def _num_grid_tiles(model: Llava) -> int:
    """Return the number of tiles of the largest image, without its base view. 0 without a grid."""
    layout = model.config.image_layout()
    return max((width * height // layout.side**2 for width, height in layout.grid), default=0)


def max_tiles_per_step(model: Llava, max_batch_tokens: int) -> int:
    """Return the maximum number of tiles per pass of the vision tower.

    It is large enough for all images of a step or for one large image, up to MAX_TILES_PER_PASS.
    """
    largest = 1 + _num_grid_tiles(model)
    return min(MAX_TILES_PER_PASS, max(largest, max_batch_tokens // model.config.tokens_per_tile))


def sizes_up_to(maximum: int) -> Iterator[int]:
    """Yield the powers of two below ``maximum``, followed by ``maximum``.

    Kernels select tiles by the number of rows. All limits are powers of two, so steps of these sizes compile
    every variant of every kernel.
    """
    size = 1
    while size < maximum:
        yield size
        size *= 2
    yield maximum


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether the step ran out of memory.

    Torch raises a specific exception only if GPU memory runs out.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
