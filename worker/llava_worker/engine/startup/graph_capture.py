"""Capture of CUDA graphs for the vision tower and for short steps.

A graph contains the addresses of the KV cache, but the size of the cache depends on the memory that the
graphs take. The graphs are therefore captured twice: first with a KV cache of one block, to measure their
memory, and again once the cache has been allocated. The memory of a graph does not depend on the size of the
cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.speculation.speculative_decoding import MAX_DRAFTS_PER_STEP
from llava_worker.engine.startup.warmup import WarmupError
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.gpu.cuda_graphs import GraphPool
from llava_worker.model.gpu.step_graphs import StepGraphs, is_capturable
from llava_worker.model.gpu.tower_graphs import TowerGraphs
from llava_worker.model.llava import Llava
from llava_worker.model.tensor_parallel import RankFailed

__all__ = ["GraphCapture", "max_graph_tokens"]

_MIN_TOKENS = 128  # steps up to this size are captured even if there are only a few sequences

logger = logging.getLogger(__name__)


def max_graph_tokens(max_num_sequences: int, max_batch_tokens: int) -> int:
    """Return the number of tokens of the largest captured step that does not only decode.

    It is large enough for a step in which all sequences decode and which has as many drafts as possible.
    """
    return min(max_batch_tokens, max(_MIN_TOKENS, max_num_sequences + MAX_DRAFTS_PER_STEP))


@dataclass(frozen=True, slots=True)
class _Graphs:
    tower: TowerGraphs
    decodes: StepGraphs | None
    mixed: StepGraphs | None


@dataclass(slots=True)
class GraphCapture:
    """Captures all graphs of an engine or, if one capture fails, none of them.

    With tensor parallelism, this applies to the graphs of all ranks.

    ``pool`` is None if CUDA graphs are disabled. ``includes_steps`` is false if the precision supports graphs
    only for the vision tower.
    """

    model: Llava
    backend: AttentionBackend
    pool: GraphPool | None
    includes_steps: bool
    max_tiles: int
    max_rows: int  # of steps that only decode
    max_tokens: int  # of other steps
    context_length: int

    def measure(self, scratch: KVCache, free_bytes: Callable[[], int | None]) -> int:
        """Return the size of the graphs in bytes. Capture them for ``scratch`` and release them again.

        If this fails, no graphs are captured later. ``free_bytes`` returns the free memory of the device.
        """
        if self.pool is None:
            return 0
        before = free_bytes()
        graphs = self._capture(scratch)
        if graphs is None:
            return 0
        after = free_bytes()
        del graphs
        self._release(self.pool)
        return 0 if before is None or after is None else max(0, before - after)

    def apply(self, runner: ModelRunner) -> None:
        """Let the runner use graphs. Its KV cache must be empty."""
        graphs = self._capture(runner.cache)
        if graphs is not None:
            runner.encode = graphs.tower.encode
            runner.graphs, runner.mixed_graphs = graphs.decodes, graphs.mixed
            steps = "no steps" if graphs.mixed is None else f"steps of up to {self.max_tokens} tokens"
            logger.info("captured CUDA graphs for %s and up to %d image tiles", steps, self.max_tiles)

    def _capture(self, cache: KVCache) -> _Graphs | None:
        """Capture all graphs. If a capture fails, log why, release all graphs and return None."""
        if self.pool is None:
            return None
        try:
            return self._capture_all(self.pool, cache)
        except RankFailed as error:
            raise WarmupError(str(error)) from error
        except RuntimeError as error:
            reason = str(error)
        # The memory is released outside the except block, because inside it, the traceback would keep the
        # tensors of the graphs alive.
        self._release(self.pool)
        self.pool = None
        logger.warning(
            "CUDA graph capture failed, so no graphs are used and performance will be lower: %s", reason
        )
        return None

    def _release(self, pool: GraphPool) -> None:
        """Release the graphs of all ranks."""
        pool.release()
        self.model.ranks.send_release()

    def _capture_all(self, pool: GraphPool, cache: KVCache) -> _Graphs:
        decodes = mixed = None
        if self.includes_steps and is_capturable(self.backend, cache, self.model.device):
            mixed = self._capture_steps(pool, cache, self.max_tokens, is_mixed=True)
            decodes = self._capture_steps(pool, cache, self.max_rows, is_mixed=False)
        return _Graphs(TowerGraphs(self.model, pool, max_tiles=self.max_tiles), decodes, mixed)

    def _capture_steps(self, pool: GraphPool, cache: KVCache, size: int, *, is_mixed: bool) -> StepGraphs:
        return StepGraphs(
            self.model,
            cache,
            self.backend,
            pool,
            max_tokens=size,
            context_length=self.context_length,
            is_mixed=is_mixed,
        )
