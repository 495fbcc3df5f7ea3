"""Reads checkpoint files. Their tensors are listed first and read later, a few rows at a time.

safetensors files are not memory-mapped, because mapped pages that have been accessed count toward the memory
limit of the process, so that loading would need twice as much memory. Pickle files can execute code when they
are loaded. They are therefore loaded only if the caller allows it, and always with ``weights_only=True``.
"""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from llava_worker.model.config.untrusted_file import (
    MAX_JSON_BYTES,
    CheckpointError,
    open_regular,
    parse_json_object,
    read_json_object,
)

__all__ = ["PICKLED", "StoredTensor", "find_weights", "read_file"]

PICKLED = (".bin", ".pt", ".pth")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")
_MAX_DIMENSIONS = 8
_MAX_SIZE = 1 << 62  # of a dimension or an offset
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

_PLAIN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class ReadRows(Protocol):
    """A function that reads rows [start, end) of a tensor, or only their ``columns`` [first, last)."""

    def __call__(self, start: int, end: int, columns: tuple[int, int] | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a checkpoint file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: ReadRows

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_plain(self) -> bool:
        """Whether the values can be used directly.

        FP8 and integer values cannot, because they need a scale.
        """
        return self.dtype in _PLAIN_DTYPES

    @property
    def description(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def find_weights(folder: Path) -> list[Path]:
    """Return the files in the index, or else the single weight file. safetensors is preferred over pickle."""
    for name in _INDICES:
        if (folder / name).exists():
            return _files_of_index(folder / name)
    for name in _SINGLES:
        if (folder / name).exists():
            return [folder / name]
    path = folder / _SINGLES[0]
    raise CheckpointError(f"{path} does not exist. The model folder is incomplete.")


def read_file(path: Path, *, allow_pickle: bool) -> list[StoredTensor]:
    """Return the tensors in a file, in the order of their data, so that the file can be read sequentially.

    Raises CheckpointError if the file is missing or corrupt, or if it is a pickle file and ``allow_pickle``
    is false.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. The model folder is incomplete.")
    if path.suffix in PICKLED:
        return _read_pickled(path, allow_pickle)
    header, start = _read_header(path)
    size = path.stat().st_size
    found = sorted(
        (_locate(path, name, entry) for name, entry in header.items()), key=lambda item: item.begin
    )
    for tensor, following in pairwise(found):
        if tensor.end > following.begin:
            raise _corrupt(path, f"{tensor.name!r} and {following.name!r} overlap")
    for tensor in found:
        if start + tensor.end > size:
            raise _corrupt(path, f"{tensor.name!r} extends beyond the end of the file")
    file = _DataFile(path)
    return [tensor.stored(file, start) for tensor in found]


def _files_of_index(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    try:
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("weight_map must be an object that contains the file name of each tensor")
        names = set(weight_map.values())
        if any(Path(name).name != name or name in ("", "..") or "\0" in name for name in names):
            raise ValueError("it contains a path outside of its folder")
        return [index.parent / name for name in sorted(names)]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{index} is not a valid index of weight files: {error}.") from error


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and the byte offset of the data after it."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _corrupt(path, "the header is longer than the file")
        if length > MAX_JSON_BYTES:
            raise _corrupt(path, f"the header is {length} bytes long; the limit is {MAX_JSON_BYTES}")
        text = file.read(length)
    header = parse_json_object(text, f"The header of {path}", has_unique_keys=True)
    header.pop("__metadata__", None)
    return header, 8 + length


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a header. The data is at [begin, end) after the header."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    end: int

    def stored(self, file: _DataFile, start: int) -> StoredTensor:
        reader = _RowReader(file, start + self.begin, self.shape, self.dtype)
        return StoredTensor(self.name, self.shape, self.dtype, reader)


def _locate(path: Path, name: str, entry: Any) -> _Entry:
    """Validate the entry of a tensor, except for its position in the file."""
    try:
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, f"the header entry of {name!r} is not supported: {error!r}") from error
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise _corrupt(
            path,
            f"the shape of {name!r} must consist of at most {_MAX_DIMENSIONS} integers from 0 to {_MAX_SIZE}",
        )
    if not (_is_size(begin) and _is_size(end)) or end - begin != math.prod(shape) * dtype.itemsize:
        raise _corrupt(path, f"the size of {name!r} does not match its shape")
    return _Entry(name, tuple(shape), dtype, begin, end)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


class _DataFile:
    """A file that is opened when it is first read, and closed when no tensor refers to it any more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer. Raises OSError, or CheckpointError if the file has become too short."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
        while buffer:  # a read returns at most 2 GiB
            num = os.preadv(self._descriptor, [buffer], offset)
            if not num:
                raise _corrupt(self._path, "the file was truncated while it was being read")
            buffer, offset = buffer[num:], offset + num


@dataclass(frozen=True, slots=True)
class _RowReader:
    file: _DataFile
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, start: int, end: int, columns: tuple[int, int] | None = None) -> Tensor:
        row_shape = self.shape[1:]
        row_bytes = math.prod(row_shape) * self.dtype.itemsize
        if columns is None:
            rows = torch.empty(end - start, *row_shape, dtype=self.dtype)
            self._read([self.offset + start * row_bytes], rows)
            return rows
        first, last = (column * self.dtype.itemsize for column in columns)
        rows = torch.empty(end - start, columns[1] - columns[0], dtype=self.dtype)
        self._read([self.offset + row * row_bytes + first for row in range(start, end)], rows)
        return rows

    def _read(self, offsets: list[int], target: Tensor) -> None:
        """Fill ``target`` with parts of equal size. One part is read from each offset."""
        buffer = memoryview(target.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        num_bytes = len(buffer) // max(1, len(offsets))
        for index, offset in enumerate(offsets):
            self.file.read_into(buffer[index * num_bytes : (index + 1) * num_bytes], offset)


def _read_pickled(path: Path, allow_pickle: bool) -> list[StoredTensor]:
    if not allow_pickle:
        raise CheckpointError(
            f"{path} is a pickle file, which can execute code when it is loaded. Convert it to safetensors "
            "or, if you trust its source, set allow_pickle."
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        items = [(name, tensor) for name, tensor in tensors.items() if isinstance(tensor, Tensor)]
    except Exception as error:  # a corrupt pickle can raise any exception
        raise CheckpointError(f"{path} does not contain plain weights: {error}") from error
    return [
        StoredTensor(name, tuple(tensor.shape), tensor.dtype, _row_slices(tensor)) for name, tensor in items
    ]


def _row_slices(tensor: Tensor) -> ReadRows:
    def read(start: int, end: int, columns: tuple[int, int] | None = None) -> Tensor:
        rows = tensor[start:end]
        return rows if columns is None else rows[:, slice(*columns)]

    return read


def _corrupt(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is corrupt or incomplete: {reason}.")
