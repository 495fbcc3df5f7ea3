"""Decides whether the ranks use the one-shot all-reduce for small tensors. They all use it, or none does."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from llava_worker.model.one_shot_all_reduce import OneShotAllReduce, OneShotUnavailable
from llava_worker.model.tensor_parallel import TensorParallel
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan

__all__ = ["MakeOneShot", "choose_all_reduce"]

MakeOneShot = Callable[[torch.device, torch.dtype, range], OneShotAllReduce]

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # relative to the largest sum
_NUM_ROWS = (1, 2, 3, 5, 8, 16, 64)  # those that fit in the buffer are tested

logger = logging.getLogger(__name__)


@torch.inference_mode()
def choose_all_reduce(
    ranks: TensorParallel, dtype: torch.dtype, hidden_size: int, make: MakeOneShot = OneShotAllReduce
) -> None:
    """Let ``ranks`` use the one-shot kernel if it passes a self-test on all ranks. Log the selection.

    The first rank makes the other ranks call this function too. They agree after each phase, because the
    next one would wait forever for a rank that has failed.
    """
    ranks.send_choose_all_reduce()
    one_shot, reason = None, "it failed on another rank"
    try:
        one_shot = make(ranks.device, dtype, _gpus(ranks))
    except OneShotUnavailable as error:
        reason = str(error)
    is_usable = ranks.agree(one_shot is not None)
    for phase in (_connect, _self_test):
        if not is_usable or one_shot is None:
            break
        try:
            phase(one_shot, dtype, hidden_size)
        except RuntimeError as error:
            is_usable, reason = False, str(error)
        is_usable = ranks.agree(is_usable)
    ranks.one_shot = one_shot if is_usable else None
    if ranks.is_first:
        _log(ranks.one_shot, hidden_size, reason)


def _gpus(ranks: TensorParallel) -> range:
    """Return the indices of the GPUs of all ranks, which are consecutive."""
    first = (ranks.device.index or 0) - ranks.shard.index
    return range(first, first + ranks.size)


def _connect(one_shot: OneShotAllReduce, dtype: torch.dtype, hidden_size: int) -> None:
    del dtype, hidden_size
    one_shot.connect()


def _self_test(one_shot: OneShotAllReduce, dtype: torch.dtype, hidden_size: int) -> None:
    """Compare the results with those of torch's all-reduce. Raises RuntimeError if they differ.

    Memory that the kernel does not write contains NaN. If the kernel raises an error, it does so on all
    ranks, because the arguments are the same.
    """
    device = one_shot.buffer.device
    noise = torch.Generator(device).manual_seed(dist.get_rank())
    inputs = [
        torch.randn(num_rows, hidden_size, generator=noise, device=device).to(dtype) for num_rows in _NUM_ROWS
    ]
    inputs = [x for x in inputs if one_shot.fits(x)]
    expected = [x.clone() for x in inputs]
    for total in expected:
        dist.all_reduce(total)
    with uninitialized_memory_is_nan():
        one_shot.buffer.fill_(torch.nan)
        sums = [one_shot(x) for x in inputs]
    for actual, total in zip(sums, expected, strict=True):
        error = _relative_error(actual, total)
        if not error <= _TOLERANCE[dtype]:
            raise RuntimeError(f"the maximum error is {error:.3g} for {len(total)} tokens")


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    largest = expected.float().abs().max()
    return float((actual.float() - expected.float()).abs().max() / largest)


def _log(one_shot: OneShotAllReduce | None, hidden_size: int, reason: str) -> None:
    backend = dist.get_backend()
    if one_shot is None:
        logger.info("all-reduce: %s; the one-shot kernel is not used: %s", backend, reason)
    else:
        num_tokens = len(one_shot.buffer) // hidden_size
        logger.info("all-reduce: one-shot kernel for up to %d tokens, %s for more", num_tokens, backend)
