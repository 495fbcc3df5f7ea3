"""CUDA graphs of a tensor-parallel rank that is not the first one. It captures and replays on command.

Each graph begins with two broadcasts of the first rank: the inputs of the step, and the embeddings of its
tokens. A replay therefore needs nothing from the host except the launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.decoder import Decoder
from llava_worker.model.gpu.cuda_graphs import GraphPool
from llava_worker.model.gpu.step_graphs import capture_steps
from llava_worker.model.gpu.step_inputs import StepInputs
from llava_worker.model.tensor_parallel import CaptureCommand, TensorParallel

__all__ = ["ShardGraphs"]


class ShardGraphs:
    """Graphs for a shard of a decoder, which correspond to the `StepGraphs` of the first rank."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        backend: AttentionBackend,
        pool: GraphPool,
        ranks: TensorParallel,
        command: CaptureCommand,
    ) -> None:
        """Capture all graphs. Raises RuntimeError on all ranks if a capture fails on one of them."""
        self._decoder = decoder
        self._cache = cache
        self._backend = backend
        self._ranks = ranks
        self._is_mixed = command.is_mixed
        self._graphs = capture_steps(
            ranks,
            pool,
            self._compute,
            max_tokens=command.max_tokens,
            num_blocks=command.num_blocks,
            device=ranks.device,
        )

    def replay(self, num_rows: int) -> None:
        self._graphs[num_rows].replay()

    def _compute(self, inputs: StepInputs) -> Tensor:  # [rows, hidden]
        norm = self._decoder.norm.weight
        x = torch.empty(len(inputs.positions), len(norm), dtype=norm.dtype, device=norm.device)
        for tensor in (inputs.packed, x):
            self._ranks.broadcast(tensor)
        plan = self._backend.decode_plan(inputs.metadata, self._cache, is_mixed=self._is_mixed)
        assert plan is not None
        return self._decoder(x, inputs.positions, plan)
