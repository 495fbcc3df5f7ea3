"""Computes a digest of weights from samples, which takes a fraction of a second for a model of several GB.

Tensors are sorted by their canonical names. The digest therefore does not depend on the folder, on the names
of the files or on how the tensors are distributed across them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Protocol

import torch

from llava_worker.model.loading.checkpoint_files import StoredTensor
from llava_worker.model.loading.lora import LoraWeight

__all__ = ["digest_weights"]

# Tensors up to this size are read completely. Larger tensors are sampled once per this number of bytes.
_STRIDE_BYTES = 1 << 20
_SAMPLE_BYTES = 4096  # minimum size of a sample, which consists of whole rows


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...


def digest_weights(weights: Mapping[str, StoredTensor], lora: Mapping[str, LoraWeight]) -> str:
    """Return 32 hexadecimal digits that identify the weights. Both arguments are keyed by canonical name.

    The digest covers the name, the dtype and the shape of every tensor, all values of every tensor up to
    1 MiB, and one row or more per MiB of larger tensors. Training changes all rows of a matrix, and therefore
    the digest. An edit of a few rows of a large matrix may not change it.
    """
    hash_ = blake2b(digest_size=16)
    for name in sorted(weights):
        _add(hash_, name, weights[name])
    for name in sorted(lora):
        hash_.update(repr((name, lora[name].scale)).encode())
        _add(hash_, "lora_A", lora[name].a)
        _add(hash_, "lora_B", lora[name].b)
    return hash_.hexdigest()


def _add(hash_: _Hash, name: str, tensor: StoredTensor) -> None:
    hash_.update(repr((name, tensor.description)).encode())
    for start, end in _samples(tensor):
        rows = tensor.read(start, end).contiguous()
        hash_.update(rows.view(-1).view(torch.uint8).numpy().data)  # type: ignore[arg-type]


def _samples(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows."""
    num_rows = tensor.shape[0]
    if tensor.num_bytes <= _STRIDE_BYTES:
        yield 0, num_rows
        return
    row_bytes = tensor.num_bytes // num_rows
    length = math.ceil(_SAMPLE_BYTES / row_bytes)
    for start in range(0, num_rows, max(1, _STRIDE_BYTES // row_bytes)):
        yield start, min(start + length, num_rows)
