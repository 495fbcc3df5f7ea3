"""Tensor parallelism: a decoder is sharded across several processes (ranks).

In every layer, each rank holds some of the attention heads and part of the MLP's intermediate dimension. The
first rank is the leader. It embeds tokens and images, samples tokens and manages sequences. Before each
forward pass, it sends a command to the other ranks. Commands are sent through pipes, which never block the
leader. Tensors are sent through torch.distributed (NCCL for GPUs, Gloo for CPUs). During the forward pass,
all-reduce adds up the partial results of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import msgspec
import torch
from torch import Tensor
from torch import distributed as dist

from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.layers.linear import Shard
from llava_worker.model.one_shot_all_reduce import OneShotAllReduce

__all__ = [
    "SINGLE_RANK",
    "CacheCommand",
    "CaptureCommand",
    "ChooseAllReduceCommand",
    "CopyCommand",
    "RankCommand",
    "RankFailed",
    "ReleaseCommand",
    "ReplayCommand",
    "StepCommand",
    "TensorParallel",
    "read_frame",
    "receive_step",
    "send_frame",
]

_LENGTH_BYTES = 4


class RankFailed(RuntimeError):
    """The ranks are out of sync, so no more forward passes are possible."""


class ChooseAllReduceCommand(msgspec.Struct, tag="choose_all_reduce", frozen=True):
    """A command to decide, together with the first rank, how small tensors are added up."""


class CacheCommand(msgspec.Struct, tag="cache", frozen=True):
    """A command to replace the KV cache with a new one of this size."""

    num_blocks: int
    block_size: int


class CopyCommand(msgspec.Struct, tag="copy", frozen=True):
    """A command to copy ``num_rows`` consecutive slots in the KV cache.

    ``first`` is the first slot to copy, and ``target`` is the first slot to overwrite.
    """

    first: int
    target: int
    num_rows: int


class StepCommand(msgspec.Struct, tag="step", frozen=True):
    """A command to run a forward pass. Its input tensors are broadcast separately.

    ``width`` is the number of columns in the block tables.
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int
    width: int


class CaptureCommand(msgspec.Struct, tag="capture", frozen=True, kw_only=True):
    """A command to capture CUDA graphs for steps of up to ``max_tokens`` tokens.

    ``num_blocks`` is the number of columns in the block tables. If ``is_mixed`` is true, several rows may be
    consecutive tokens of one sequence.
    """

    max_tokens: int
    num_blocks: int
    is_mixed: bool


class ReplayCommand(msgspec.Struct, tag="replay", frozen=True, kw_only=True):
    """A command to replay the graph for ``num_rows`` rows, which receives its inputs itself."""

    num_rows: int
    is_mixed: bool


class ReleaseCommand(msgspec.Struct, tag="release", frozen=True):
    """A command to destroy all graphs."""


RankCommand = (
    ChooseAllReduceCommand
    | CacheCommand
    | CopyCommand
    | StepCommand
    | CaptureCommand
    | ReplayCommand
    | ReleaseCommand
)


class TensorParallel:
    """This process as one of ``size`` ranks, which runs on ``device``, by default the CPU.

    ``followers`` are the leader's pipes to the other ranks.
    """

    def __init__(
        self,
        index: int = 0,
        size: int = 1,
        followers: Sequence[BinaryIO] = (),
        device: torch.device | None = None,
    ) -> None:
        self.size = size
        self.shard = Shard(index, size)
        self.device = device or torch.device("cpu")
        self.one_shot: OneShotAllReduce | None = None  # for small tensors, on all ranks or on none
        self._followers = followers

    @property
    def is_first(self) -> bool:
        return self.shard.index == 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` across all ranks. ``x`` may be overwritten."""
        if self.size == 1:
            return x
        if self.one_shot is not None and self.one_shot.fits(x):
            return self.one_shot(x)
        dist.all_reduce(x)
        return x

    def broadcast(self, x: Tensor) -> None:
        """Overwrite ``x`` on the other ranks with its values on the first rank."""
        if self.size > 1:
            dist.broadcast(x, 0)

    def agree(self, is_true: bool) -> bool:
        """Return whether ``is_true`` is true on all ranks. Waits for the device."""
        if self.size == 1:
            return is_true
        flag = torch.tensor([is_true], dtype=torch.int32, device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag.item())

    def send_choose_all_reduce(self) -> None:
        self._send(ChooseAllReduceCommand())

    def send_capture(self, *, max_tokens: int, num_blocks: int, is_mixed: bool) -> None:
        self._send(CaptureCommand(max_tokens=max_tokens, num_blocks=num_blocks, is_mixed=is_mixed))

    def send_replay(self, num_rows: int, *, is_mixed: bool) -> None:
        self._send(ReplayCommand(num_rows=num_rows, is_mixed=is_mixed))

    def send_release(self) -> None:
        self._send(ReleaseCommand())

    def send_cache(self, num_blocks: int, block_size: int) -> None:
        self._send(CacheCommand(num_blocks, block_size))

    def send_copy(self, first: int, target: int, num_rows: int) -> None:
        self._send(CopyCommand(first, target, num_rows))

    def send_step(self, x: Tensor, positions: Tensor, metadata: AttentionMetadata) -> None:
        """Send the input of a forward pass to the other ranks: x [tokens, hidden], positions, metadata."""
        if not self._followers:
            return
        tables = metadata.block_tables
        self._send(
            StepCommand(metadata.query_lens, metadata.context_lens, metadata.num_decodes, tables.shape[1])
        )
        self.broadcast(torch.cat([positions, metadata.slot_mapping, tables.flatten()]))
        self.broadcast(x)

    @contextmanager
    def collective_step(self) -> Iterator[None]:
        """If there are other ranks, convert an out-of-memory error to RankFailed.

        The other ranks are waiting in the middle of the step, so it cannot be retried with a smaller batch.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            if self.size == 1:
                raise
            raise RankFailed(
                f"A step across {self.size} ranks ran out of memory and cannot be retried: {error}"
            ) from error

    def _send(self, command: RankCommand) -> None:
        if not self._followers:
            return
        frame = msgspec.msgpack.encode(command)
        for pipe in self._followers:
            send_frame(pipe, frame)


SINGLE_RANK = TensorParallel()


def send_frame(pipe: BinaryIO, frame: bytes) -> None:
    """Write the length of the frame as 4 bytes in little-endian order, followed by the frame."""
    pipe.write(len(frame).to_bytes(_LENGTH_BYTES, "little") + frame)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> bytes | None:
    """Return the next frame, or None if the pipe is closed."""
    head = pipe.read(_LENGTH_BYTES)
    frame = pipe.read(int.from_bytes(head, "little"))
    return frame if len(head) == _LENGTH_BYTES else None


def receive_step(
    command: StepCommand, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, AttentionMetadata]:
    """Receive x, the positions and the metadata that the leader sent with `TensorParallel.send_step`."""
    num_tokens, num_rows = sum(command.query_lens), len(command.query_lens)
    packed = torch.empty(2 * num_tokens + num_rows * command.width, dtype=torch.int64, device=device)
    dist.broadcast(packed, 0)
    x = torch.empty(num_tokens, hidden_size, dtype=dtype, device=device)
    dist.broadcast(x, 0)
    positions, slot_mapping, tables = torch.split(packed, [num_tokens, num_tokens, num_rows * command.width])
    metadata = AttentionMetadata(
        query_lens=command.query_lens,
        context_lens=command.context_lens,
        num_decodes=command.num_decodes,
        block_tables=tables.view(num_rows, command.width),
        slot_mapping=slot_mapping,
    )
    return x, positions, metadata
