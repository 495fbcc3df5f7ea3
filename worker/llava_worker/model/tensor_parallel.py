"""One decoder over several processes, the ranks, each with a part of every layer's heads and inner width.

The first rank leads: it alone embeds words and pictures, chooses tokens and knows sequences. Before each
forward pass it tells the others, its followers, what goes through: numbers by a pipe, at which nobody has to
wait, and tensors by torch.distributed (NCCL between GPUs, gloo between CPUs). In the pass all sum up what
each one's part of a layer gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import msgspec
import torch
from torch import Tensor
from torch import distributed as dist

from llava_worker.model.attention.base import PackedRows
from llava_worker.model.layers.linear import Portion

__all__ = [
    "ALONE",
    "CacheOrder",
    "CopyOrder",
    "Order",
    "RankFailed",
    "StepOrder",
    "TensorParallel",
    "read_frame",
    "receive_step",
    "send_frame",
]

_LENGTH_BYTES = 4


class RankFailed(RuntimeError):
    """The ranks are no longer at the same place: no step can be made any more."""


class CacheOrder(msgspec.Struct, tag="cache", frozen=True):
    """Make a KV cache of this size, in place of any other."""

    num_blocks: int
    block_size: int


class CopyOrder(msgspec.Struct, tag="copy", frozen=True):
    """Copy so many slots of the cache, from ``first`` on to ``target`` on."""

    first: int
    target: int
    num_rows: int


class StepOrder(msgspec.Struct, tag="step", frozen=True):
    """Make a forward pass; its tensors follow by broadcast. ``width`` is that of the block tables."""

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int
    width: int


Order = CacheOrder | CopyOrder | StepOrder


class TensorParallel:
    """This process among the ranks; ``followers`` are the leader's pipes to the others."""

    def __init__(self, index: int = 0, size: int = 1, followers: Sequence[BinaryIO] = ()) -> None:
        self.size = size
        self.portion = Portion(index, size)
        self._followers = followers

    @property
    def is_first(self) -> bool:
        return self.portion.index == 0

    def sum(self, x: Tensor) -> Tensor:
        """Over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def tell_cache(self, num_blocks: int, block_size: int) -> None:
        self._tell(CacheOrder(num_blocks, block_size))

    def tell_copy(self, first: int, target: int, num_rows: int) -> None:
        self._tell(CopyOrder(first, target, num_rows))

    def tell_step(self, x: Tensor, positions: Tensor, rows: PackedRows) -> None:
        """x [tokens, hidden], what goes into the first layer."""
        if not self._followers:
            return
        width = rows.block_tables.shape[1]
        self._tell(StepOrder(rows.query_lens, rows.context_lens, rows.num_decodes, width))
        dist.broadcast(torch.cat([positions, rows.slots, rows.block_tables.flatten()]), 0)
        dist.broadcast(x, 0)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """A step that was told cannot be tried again with less: the others wait in its middle."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            if self.size == 1:
                raise
            raise RankFailed(
                f"no memory in a step of {self.size} ranks, which none can leave: {error}"
            ) from error

    def _tell(self, order: Order) -> None:
        frame = msgspec.msgpack.encode(order)
        for pipe in self._followers:
            send_frame(pipe, frame)


ALONE = TensorParallel()


def send_frame(pipe: BinaryIO, frame: bytes) -> None:
    """Its length, then itself."""
    pipe.write(len(frame).to_bytes(_LENGTH_BYTES, "little") + frame)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> bytes | None:
    """None at the pipe's end."""
    head = pipe.read(_LENGTH_BYTES)
    frame = pipe.read(int.from_bytes(head, "little"))
    return frame if len(head) == _LENGTH_BYTES else None


def receive_step(
    order: StepOrder, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, PackedRows]:
    """What the leader's `tell_step` was given."""
    num_tokens, num_rows = sum(order.query_lens), len(order.query_lens)
    packed = torch.empty(2 * num_tokens + num_rows * order.width, dtype=torch.int64, device=device)
    dist.broadcast(packed, 0)
    x = torch.empty(num_tokens, hidden_size, dtype=dtype, device=device)
    dist.broadcast(x, 0)
    positions, slots, tables = torch.split(packed, [num_tokens, num_tokens, num_rows * order.width])
    rows = PackedRows(
        query_lens=order.query_lens,
        context_lens=order.context_lens,
        num_decodes=order.num_decodes,
        block_tables=tables.view(num_rows, order.width),
        slots=slots,
    )
    return x, positions, rows
