"""The process of a tensor-parallel rank: ``python -m llava_worker.engine.parallel.rank_worker``.

Every rank except the first runs in a process of this kind. The process holds one shard of the decoder and of
the KV cache. Sequences, tokens and the connection to the queue exist only in the first rank, which sends
commands to the standard input of the other ranks. If its standard input is closed, the first rank has exited,
so the process exits immediately.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from llava_worker.engine.core.kv_cache_size import allocate_cache
from llava_worker.engine.parallel.choose_all_reduce import MakeOneShot, choose_all_reduce
from llava_worker.engine.parallel.rank_group import RankSetup, join
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import ModelConfig, read_config
from llava_worker.model.decoder import Decoder
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool, EagerPool, GraphPool
from llava_worker.model.gpu.shard_graphs import ShardGraphs
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.loading.weights_cache import WeightsCache
from llava_worker.model.one_shot_all_reduce import OneShotAllReduce
from llava_worker.model.quantization.precision import Precision, choose_precision
from llava_worker.model.tensor_parallel import (
    CacheCommand,
    CaptureCommand,
    ChooseAllReduceCommand,
    CopyCommand,
    RankCommand,
    RankFailed,
    ReleaseCommand,
    ReplayCommand,
    StepCommand,
    TensorParallel,
    read_frame,
    receive_step,
)

__all__ = ["RankWorker", "main"]

_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class RankWorker:
    """Executes the commands sent by the first rank.

    ``pool`` captures CUDA graphs. By default, it captures real ones on a GPU, and substitutes elsewhere.
    """

    def __init__(
        self,
        setup: RankSetup,
        *,
        choose_backend: Callable[..., AttentionBackend] = choose_backend,
        pool: GraphPool | None = None,
        make_one_shot: MakeOneShot = OneShotAllReduce,
    ) -> None:
        self._setup = setup
        self._device = torch.device(setup.device)
        self._config = _share(setup)
        self._precision: Precision = choose_precision(setup.precision, self._device)
        text = self._config.text_config
        self._backend = choose_backend(
            self._precision,
            text,
            self._device,
            is_int8_cache=setup.kv_cache_dtype == "int8",
            measure=lambda backend: backend.name != setup.attention,  # the first rank has measured
        )
        if self._backend.name != setup.attention:
            raise RuntimeError(
                f"{self._device} uses the attention backend {self._backend.name}, but the first rank uses "
                f"{setup.attention}. All ranks must use the same type of device."
            )
        self._ranks = TensorParallel(setup.index, setup.size, device=self._device)
        self._decoder = Decoder(text, precision=self._precision, device=self._device, ranks=self._ranks)
        self._cache: KVCache | None = None
        self._pool = pool or (CudaGraphPool(self._device) if self._device.type == "cuda" else EagerPool())
        self._make_one_shot = make_one_shot
        self._graphs: dict[bool, ShardGraphs] = {}  # keyed by is_mixed

    def load(self) -> None:
        """Load this rank's shard of the weights."""
        part = nn.ModuleDict({"language_model": self._decoder})  # with the tensor names used in checkpoints
        setup, cache = self._setup, None
        if setup.weights_cache and self._device.type == "cpu":
            cache = WeightsCache(Path(setup.weights_cache), setup.min_cached_bytes)
        weights = load_weights(
            part,
            Path(setup.folder),
            base=Path(setup.base) if setup.base else None,
            allow_pickle=setup.allow_pickle,
            is_whole=False,
            cache=cache,
        )
        if weights.unstored is not None:
            weights.unstored.store_now()

    @torch.inference_mode()
    def execute(self, command: RankCommand) -> None:
        if isinstance(command, ReplayCommand):
            self._graphs[command.is_mixed].replay(command.num_rows)
        elif isinstance(command, CacheCommand):
            self._release_graphs()  # they contain the addresses of the old cache
            self._cache = None  # free the old cache before allocating the new one
            self._cache = self._make_cache(command)
        elif isinstance(command, ChooseAllReduceCommand):
            hidden_size = self._config.text_config.hidden_size
            choose_all_reduce(self._ranks, self._precision.dtype, hidden_size, self._make_one_shot)
        elif isinstance(command, ReleaseCommand):
            self._release_graphs()
        else:
            assert self._cache is not None
            self._execute_with_cache(command, self._cache)

    def _execute_with_cache(
        self, command: CaptureCommand | CopyCommand | StepCommand, cache: KVCache
    ) -> None:
        if isinstance(command, CaptureCommand):
            self._capture(command, cache)
        elif isinstance(command, CopyCommand):
            rows = torch.arange(command.num_rows, device=self._device)
            cache.copy_rows(command.first + rows, command.target + rows)
        else:
            size, dtype = self._config.text_config.hidden_size, self._precision.dtype
            x, positions, packed = receive_step(command, size, dtype, self._device)
            self._decoder(x, positions, self._backend.plan(packed, cache))

    def _capture(self, command: CaptureCommand, cache: KVCache) -> None:
        """Capture graphs. If a capture fails on any rank, the first rank sends a ReleaseCommand."""
        try:
            self._graphs[command.is_mixed] = ShardGraphs(
                self._decoder, cache, self._backend, self._pool, self._ranks, command
            )
        except RankFailed:
            raise
        except RuntimeError as error:
            logger.warning("CUDA graph capture failed: %s", error)

    def _release_graphs(self) -> None:
        self._graphs = {}
        self._pool.release()

    def _make_cache(self, command: CacheCommand) -> KVCache:
        spec = KVCacheSpec.for_model(
            self._config.text_config,
            num_blocks=command.num_blocks,
            block_size=command.block_size,
            dtype=self._precision.dtype,
            is_int8=self._setup.kv_cache_dtype == "int8",
            is_head_major=self._backend.is_head_major,
        )
        cache = allocate_cache(spec, self._device)
        # This rank cannot detect when the engine is idle, so it allocates memory for one context at once.
        cache.prefault(self._config.text_config.max_position_embeddings)
        return cache


def main(make_worker: Callable[[RankSetup], RankWorker] = RankWorker) -> int:
    """Run the rank and return the exit status. If the first rank exits, the process exits with status 0."""
    _end_with_parent()
    commands = _Commands()
    setup = commands.next(RankSetup)
    logging.basicConfig(
        level=setup.log_level, format=f"%(asctime)s %(levelname)s %(name)s: rank {setup.index}: %(message)s"
    )
    if setup.num_threads:
        torch.set_num_threads(setup.num_threads)
    try:
        join(setup)
        worker = make_worker(setup)
        worker.load()
        while True:
            worker.execute(commands.next(RankCommand))
    except Exception:
        logger.critical("the rank failed; the worker will exit", exc_info=True)
        return 1


class _Commands:
    """Reads commands from standard input in a thread, which ends the process when the pipe is closed."""

    def __init__(self) -> None:
        self._frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def next(self, kind: Any) -> Any:
        """Wait for the next command and return it."""
        return msgspec.msgpack.decode(self._frames.get(), type=kind)

    def _read(self) -> None:
        status = 1
        try:
            while (frame := read_frame(sys.stdin.buffer)) is not None:
                self._frames.put(frame)
            status = 0
        except Exception:
            logger.critical("the commands of the first rank cannot be read", exc_info=True)
        finally:
            os._exit(status)  # the main thread may be blocked in native code, waiting for the first rank


def _end_with_parent() -> None:
    """Make this process exit when its parent exits, even if suspension keeps it from reading the pipe.

    This works only on Linux. Other platforms rely on the pipe.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _share(setup: RankSetup) -> ModelConfig:
    tower = Path(setup.vision_tower) if setup.vision_tower else None
    return read_config(Path(setup.config_folder), tower).shard(setup.size)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # the reader thread is still blocked, so it cannot be joined
