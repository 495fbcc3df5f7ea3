"""CUDA graphs for short steps. A graph replaces hundreds of kernel launches per step with a single one.

In a graph, each token is a row of its own, whose context ends with this token. Steps that only decode have
their own graphs, because some kernels write the key and value of a row and read its context in one launch. In
the graphs for mixed steps, which may contain draft tokens and prompts, all keys and values are written before
any are read. The tokens of a prompt then read their common context once each. Therefore, only short steps are
captured. In long steps, the device needs more time than the launches.

If a graph has more rows than the step, the unused rows are copies of the step's first row. They write the
same values to the same slot of the KV cache, so they have no effect.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.gpu.cuda_graphs import GraphPool, Replay, capture_sizes
from llava_worker.model.gpu.step_inputs import StepInputs
from llava_worker.model.llava import Llava
from llava_worker.model.tensor_parallel import RankFailed, TensorParallel

__all__ = ["CapturedStep", "StepGraphs", "capture_steps", "is_capturable"]


def is_capturable(backend: AttentionBackend, cache: KVCache, device: torch.device) -> bool:
    """Return whether the backend can compute attention for this cache without using the host."""
    metadata = StepInputs.make(1, 1, device).metadata
    return all(backend.decode_plan(metadata, cache, is_mixed=mixed) is not None for mixed in (False, True))


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A graph for a fixed number of rows. Replaying it reads ``inputs`` and updates ``out``."""

    inputs: StepInputs
    out: Tensor
    replay: Replay


def capture_steps(
    ranks: TensorParallel,
    pool: GraphPool,
    compute: Callable[[StepInputs], Tensor],
    *,
    max_tokens: int,
    num_blocks: int,
    device: torch.device,
) -> dict[int, CapturedStep]:
    """Capture ``compute`` for up to ``max_tokens`` rows. Return the graphs, keyed by the number of rows.

    The largest graph is captured first, so that the others can reuse its memory. All ranks must call this
    function with the same sizes, so that they capture the same graphs in the same order. ``num_blocks`` is
    the width of the block tables. Raises RuntimeError on all ranks if a capture fails on one of them, and
    RankFailed if the first run of a step fails and there are other ranks.
    """
    steps = {}
    with torch.inference_mode():
        for size in reversed(capture_sizes(max_tokens)):
            inputs = StepInputs.make(size, num_blocks, device)
            out, replay = _capture(ranks, pool, partial(compute, inputs))
            steps[size] = CapturedStep(inputs, out, replay)
    return steps


def _capture(ranks: TensorParallel, pool: GraphPool, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """Run ``compute`` once and capture it, on all ranks or on none."""
    try:
        pool.warm_up(compute)
    except RuntimeError as error:
        if ranks.size == 1:
            raise
        # The other ranks are waiting in the middle of the step, so they cannot agree on anything.
        raise RankFailed(f"The first run of a step across {ranks.size} ranks failed: {error}") from error
    captured, reason = None, "another rank could not capture a graph"
    try:
        captured = pool.capture(compute)
    except RuntimeError as error:
        reason = str(error)
    # Nothing runs during a capture, so a failed one does not keep the other ranks waiting.
    if not ranks.agree(captured is not None) or captured is None:
        raise RuntimeError(reason)
    return captured


class StepGraphs:
    """Graphs for a model and a KV cache. The cache must be empty, because capturing graphs writes to it.

    With tensor parallelism, this is the class of the first rank. The other ranks have `ShardGraphs`.
    """

    def __init__(
        self,
        model: Llava,
        cache: KVCache,
        backend: AttentionBackend,
        pool: GraphPool,
        *,
        max_tokens: int,
        context_length: int,
        is_mixed: bool,
    ) -> None:
        """Capture all graphs, on all ranks.

        `is_capturable` must be true for the backend and the cache. If ``is_mixed`` is false, the graphs are
        only for steps that decode one token per sequence.
        """
        self._model = model
        self._cache = cache
        self._backend = backend
        self._is_mixed = is_mixed
        self.max_tokens = max_tokens
        self._sizes = capture_sizes(max_tokens)
        num_blocks = -(-context_length // cache.block_size)
        model.ranks.send_capture(max_tokens=max_tokens, num_blocks=num_blocks, is_mixed=is_mixed)
        self._graphs = capture_steps(
            model.ranks,
            pool,
            self._compute,
            max_tokens=max_tokens,
            num_blocks=num_blocks,
            device=model.device,
        )

    @torch.inference_mode()
    def logits(self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> Tensor:
        """Return the logits, fp32 [tokens, vocab], for at most ``max_tokens`` tokens.

        The logits are valid until the next call. Shapes: token_ids, positions and slots int64 [tokens];
        tables int64 [tokens, blocks].
        """
        num = len(token_ids)
        size = self._sizes[bisect_left(self._sizes, num)]
        graph = self._graphs[size]
        self._model.ranks.send_replay(size, is_mixed=self._is_mixed)
        graph.inputs.fill(token_ids, positions, slots, tables)
        graph.replay()
        return graph.out[:num]

    def _compute(self, inputs: StepInputs) -> Tensor:  # fp32 [rows, vocab]
        # Capture the creation of the plan, too, because each replay must update the tensors that the plan
        # derives from the inputs.
        plan = self._backend.decode_plan(inputs.metadata, self._cache, is_mixed=self._is_mixed)
        assert plan is not None
        x = self._model.embed(inputs.token_ids)
        for tensor in (inputs.packed, x):
            self._model.ranks.broadcast(tensor)
        return self._model.logits(self._model(x, inputs.positions, plan))
