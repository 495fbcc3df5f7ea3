"""A file that contains the parameters of a loaded model in the layout that the kernels use.

    parameters, each padded to whole pages | footer of one page: magic number, key, checksum, zeros

The model determines the order and the sizes of the parameters, so the file does not contain them. The key
identifies everything that determines the bytes (`weights_key`).

The file is mapped with MADV_HUGEPAGE, so that Linux reads and maps it in pages of 2 MiB (on ext4 since Linux
6.16, on XFS since 5.18). With pages of 4 KiB, decoding is up to 20 % slower.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llava_worker.model.private_folder import open_private

__all__ = ["DamagedFile", "MappedFile", "file_bytes", "map_file", "uses_huge_pages", "write_file"]

_MAGIC = b"llava packed 1\0\0"
_PAGE = 4096
_CHUNK_BYTES = 8 << 20
_SYNC_BYTES = 64 << 20  # the most that is written before it is transferred to the disk
_MADV_POPULATE_READ = 22  # since Linux 5.14; not in all versions of Python
_SECTOR_WORDS = 64  # 8-byte words per partial sum of the checksum

_Bytes = npt.NDArray[np.uint8]


class DamagedFile(Exception):
    """The file does not contain the expected bytes. The message says what is wrong."""


def file_bytes(parameters: Sequence[Tensor]) -> int:
    """Return the size of the file for these parameters."""
    return sum(map(_padded, parameters)) + _PAGE


def write_file(
    path: Path, parameters: Sequence[Tensor], key: bytes, on_chunk: Callable[[], object] = lambda: None
) -> None:
    """Write a new file that only this user can access, and call ``on_chunk``, which may raise, repeatedly.

    Raises OSError, for example if the disk is full.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb", buffering=0) as stream:
        checksum, num_written = _Checksum(), 0
        for chunk in _chunks(parameters):
            on_chunk()
            checksum.update(chunk)
            _write(stream, chunk.data)
            num_written += len(chunk)
            if num_written >= _SYNC_BYTES:
                os.fsync(file)
                num_written = 0
        _write(stream, memoryview(_footer(key, checksum.digest())))
        os.fsync(file)
        if hasattr(os, "posix_fadvise"):
            # If memory is fragmented, writing leaves small pages in the page cache. Reading compacts memory.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _write(stream: FileIO, data: memoryview) -> None:
    """Write all bytes. An unbuffered file may write only a part of them."""
    while data:
        data = data[stream.write(data) :]


class MappedFile:
    """A mapped file and its tensors, which are like ``parameters``. Each tensor keeps the file mapped."""

    def __init__(self, file: int, parameters: Sequence[Tensor]) -> None:
        """Map the open file, and close it when this object is no longer used."""
        weakref.finalize(self, os.close, file)
        self._file = file
        self._memory = mmap.mmap(file, file_bytes(parameters), access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # the operating system does not support huge pages
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.data = torch.frombuffer(self._memory, dtype=torch.uint8)
        self.tensors = list(_views(self.data, parameters))

    def populate(self, begin: int, end: int) -> None:
        """Read the pages [begin, end) of the file. Raises OSError if this fails, where Linux supports it.

        Otherwise, the first access to a page that cannot be read ends the process with SIGBUS.
        """
        if sys.platform == "linux":
            try:
                self._memory.madvise(_MADV_POPULATE_READ, begin, end - begin)
            except OSError as error:
                if error.errno != errno.EINVAL:  # Linux before 5.14
                    raise

    def release_pages(self) -> None:
        """Remove all pages from the memory of this process. The next access maps them again.

        They remain in the page cache, so that mapping a page of 2 MiB takes only a few microseconds.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)

    def read_row(self, index: int, row: int, target: memoryview) -> None:
        """Read a row of a tensor [rows, ...] into ``target`` without mapping its pages. Raises OSError."""
        begin = self.tensors[index].data_ptr() - self.data.data_ptr() + row * len(target)
        if os.preadv(self._file, [target], begin) < len(target):
            raise OSError(f"the file was truncated: it has no data at byte {begin}")


def map_file(
    path: Path, parameters: Sequence[Tensor], key: bytes, on_chunk: Callable[[], object] = lambda: None
) -> MappedFile:
    """Map the file, and call ``on_chunk``, which may raise, repeatedly.

    All processes that map the file share its memory. The mapping is private: if a process wrote to a tensor,
    neither the file nor the other processes would see it. Every byte is compared with the checksum, which
    takes about 0.1 s per GB and also makes the pages resident until `MappedFile.release_pages` is called.

    Raises DamagedFile if the file does not contain what `write_file` wrote for this key, and OSError if it
    cannot be read, or if another user can write to it.
    """
    file, size = open_private(path), file_bytes(parameters)
    try:
        if (num_bytes := os.fstat(file).st_size) != size:
            raise DamagedFile(f"{path} has {num_bytes} bytes instead of {size}")
    except BaseException:
        os.close(file)
        raise
    mapped = MappedFile(file, parameters)
    data, checksum = mapped.data.numpy(), _Checksum()
    for begin in range(0, size - _PAGE, _CHUNK_BYTES):
        on_chunk()
        end = min(begin + _CHUNK_BYTES, size - _PAGE)
        try:
            mapped.populate(begin, end)
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read at byte {begin}: {error}") from error
        checksum.update(data[begin:end])
    if data[-_PAGE:].tobytes() != _footer(key, checksum.digest()):
        raise DamagedFile(f"{path} does not match its checksum or its name")
    return mapped


def uses_huge_pages(tensor: Tensor) -> bool:
    """Return whether most of the file mapping that contains the tensor consists of huge pages."""
    mapping: dict[str, int] = {}  # the fields in smaps, in KiB
    address, is_found = tensor.data_ptr(), False
    with suppress(OSError), Path("/proc/self/smaps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            words = line.split()
            if not words[0].endswith(":"):  # the first line of a mapping
                if is_found:
                    break
                first, last = (int(word, 16) for word in words[0].split("-"))
                is_found = first <= address < last
            elif is_found and words[-1] == "kB":
                mapping[words[0]] = int(words[1])
    return 2 * mapping.get("FilePmdMapped:", 0) >= mapping.get("Size:", 1)


class _Checksum:
    """A checksum that detects accidental changes at the speed of memory.

    It is the hash of the sums of all sectors of 512 bytes. It does not detect forged data. It is computed
    by one thread, so that it can be computed while the engine uses the threads of torch.
    """

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)

    def update(self, chunk: _Bytes) -> None:
        """Add bytes, uint8 [n * 4096]."""
        sectors = chunk.view(np.int64).reshape(-1, _SECTOR_WORDS)
        self._hash.update(np.einsum("ij->i", sectors).data)  # sums modulo 2^64, faster than with np.sum

    def digest(self) -> bytes:
        return self._hash.digest()


def _footer(key: bytes, checksum: bytes) -> bytes:
    return (_MAGIC + key + checksum).ljust(_PAGE, b"\0")


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _PAGE) * _PAGE


def _chunks(parameters: Sequence[Tensor]) -> Iterator[_Bytes]:
    """Yield the contents of the file before the footer, in chunks of whole pages."""
    for parameter in parameters:
        raw = parameter.detach().contiguous().view(-1).view(torch.uint8).numpy()
        num_whole = len(raw) // _PAGE * _PAGE
        for begin in range(0, num_whole, _CHUNK_BYTES):
            yield raw[begin : min(begin + _CHUNK_BYTES, num_whole)]
        if num_whole < len(raw):
            page = np.zeros(_PAGE, np.uint8)
            page[: len(raw) - num_whole] = raw[num_whole:]
            yield page


def _views(data: Tensor, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    begin = 0
    for parameter in parameters:
        raw = data[begin : begin + parameter.nbytes]
        yield raw.view(parameter.dtype).view(parameter.shape)
        begin += _padded(parameter)
