"""Starts and monitors the tensor-parallel ranks. Each rank is a process on this machine.

The first rank is the worker's own process. It starts the other ranks and exits if any of them exits, because
every step needs all ranks.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import BinaryIO, cast

import msgspec
import torch
from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from llava_worker.model.gpu.current_gpu import use_device
from llava_worker.model.tensor_parallel import TensorParallel, send_frame

__all__ = ["RankGroup", "RankSetup", "join"]

_HOST = "127.0.0.1"
_RANK_MODULE = "llava_worker.engine.parallel.rank_worker"
_CLOSE_TIMEOUT_S = 5.0
# Timeout for torch's collectives. It is long because a rank may have to wait while another one loads weights.
# The engine's watchdog detects hung steps much earlier.
_TIMEOUT = timedelta(minutes=30)

logger = logging.getLogger(__name__)


class RankSetup(msgspec.Struct, frozen=True, kw_only=True):
    """The first message sent to a rank."""

    index: int
    size: int
    port: int
    device: str
    precision: str
    attention: str
    kv_cache_dtype: str
    folder: str
    config_folder: str
    vision_tower: str | None
    base: str | None
    allow_pickle: bool
    num_threads: int | None
    weights_cache: str | None = None
    min_cached_bytes: int = 0
    log_level: int


def join(setup: RankSetup, store: TCPStore | None = None) -> None:
    """Join torch's process group and wait until all ranks have joined."""
    # All ranks are on one machine, so use the loopback interface.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    device = torch.device(setup.device)
    if store is None:
        store = TCPStore(_HOST, setup.port, setup.size, is_master=False, timeout=_TIMEOUT)
    use_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=setup.index,
        world_size=setup.size,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )


class RankGroup:
    """The processes of all ranks but the first. If one exits, a watcher thread calls ``on_lost``."""

    def __init__(
        self,
        setups: list[RankSetup],
        store: TCPStore,
        on_lost: Callable[[], None],
        module: str = _RANK_MODULE,
    ) -> None:
        """Start the ranks and wait until all of them have joined. ``setups[0]`` is for this process.

        The other ranks run ``module``.
        """
        self._on_lost = on_lost
        self._is_closing = threading.Event()
        self._processes = [_start(setup, module) for setup in setups[1:]]
        self._watchers = [
            threading.Thread(target=self._watch, args=args, name=f"rank-{args[0]}-watch", daemon=True)
            for args in enumerate(self._processes, start=1)
        ]
        for watcher in self._watchers:
            watcher.start()
        atexit.register(self.close)
        join(setups[0], store)
        pipes = [_pipe(process) for process in self._processes]
        self.ranks = TensorParallel(0, len(setups), pipes, torch.device(setups[0].device))

    @classmethod
    def start(cls, setup: RankSetup, on_lost: Callable[[], None], module: str = _RANK_MODULE) -> RankGroup:
        """Start ``setup.size`` ranks on consecutive devices."""
        listener = socket.create_server((_HOST, 0))  # listens only on the loopback interface
        port = listener.getsockname()[1]
        store = TCPStore(
            _HOST,
            port,
            setup.size,
            is_master=True,
            timeout=_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        setups = [
            msgspec.structs.replace(setup, index=index, port=port, device=_nth(setup.device, index))
            for index in range(setup.size)
        ]
        return cls(setups, store, on_lost, module)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """Stop the other ranks. After that, no more steps can run."""
        if self._is_closing.is_set():
            return
        self._is_closing.set()
        for process in self._processes:
            with suppress(BrokenPipeError):  # the rank exited without reading all commands
                _pipe(process).close()
        for process, watcher in zip(self._processes, self._watchers, strict=True):
            _end(process)
            watcher.join()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _watch(self, number: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        is_closing = self._is_closing.is_set()
        # Log failures even while the group is being closed, because this rank's exit may be what caused the
        # group to close.
        if status != 0 or not is_closing:
            logger.critical("rank %d exited with status %d; every step needs all ranks", number, status)
        if not is_closing:
            self._on_lost()


def _start(setup: RankSetup, module: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE)
    send_frame(_pipe(process), msgspec.msgpack.encode(setup))
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_CLOSE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pipe(process: subprocess.Popen[bytes]) -> BinaryIO:
    return cast(BinaryIO, process.stdin)


def _nth(device: str, index: int) -> str:
    first = torch.device(device)
    return device if first.type != "cuda" else f"cuda:{(first.index or 0) + index}"
