"""Images in a folder that all servers and workers share, for example on NFS or in a Kubernetes volume.

Each image is one file, whose modification time is the time at which it expires. Files are written under a
temporary name and then renamed, so that a reader finds either the whole image or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from llava_wire.errors import ImageStoreUnavailable
from llava_wire.image_stores.interface import ImageStore

__all__ = ["FolderImageStore"]

_NUM_THREADS = 4
_CLOCK_MARGIN_S = 60.0  # maximum expected difference between the clocks of two machines
_MAX_WRITE_S = 3600.0  # a temporary file that is older was left by a process that was killed
_IMAGE, _TEMPORARY = ".rgb", ".tmp"  # suffixes of file names
Result = TypeVar("Result")


class FolderImageStore(ImageStore):
    """Stores images in ``folder``, which is created, but not its parent.

    File operations run in threads of their own, because a network file system may not respond. They fail
    after ``timeout_s``. Other users of the machine cannot read the images.
    """

    def __init__(self, folder: Path, *, timeout_s: float = 5.0) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="image-store")
        self._num_errors: Counter[str] = Counter()

    @property
    def num_errors(self) -> Counter[str]:
        return self._num_errors

    async def put(self, digest: str, tiles: bytes, *, ttl_s: float) -> None:
        await self._run(lambda: self._write(self._path(digest), tiles, time.time() + ttl_s))

    async def get(self, digest: str) -> bytes | None:
        return await self._run(lambda: _read(self._path(digest)))

    async def touch(self, digest: str, *, ttl_s: float) -> bool:
        return await self._run(lambda: _extend(self._path(digest), time.time() + ttl_s))

    async def delete(self, digests: Iterable[str]) -> None:
        paths = [self._path(digest) for digest in digests]
        await self._run(lambda: _remove(paths))

    async def capacity_bytes(self) -> int:
        return await self._run(self._capacity)

    async def remove_expired(self) -> None:
        await self._run(self._remove_expired)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _path(self, digest: str) -> Path:
        """Return the path of an image, which is in the folder even if the digest is invalid."""
        return self._folder / (quote(digest, safe="") + _IMAGE)

    def _write(self, path: Path, tiles: bytes, expires_at: float) -> None:
        self._folder.mkdir(mode=0o770, exist_ok=True)
        temporary = self._folder / f"{uuid.uuid4().hex}{_TEMPORARY}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660)
            with os.fdopen(descriptor, "wb") as file:
                file.write(tiles)
            os.utime(temporary, (expires_at, expires_at))
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _capacity(self) -> int:
        """Return the free space plus the size of the images that are already stored."""
        free = shutil.disk_usage(self._folder.parent).free
        return free + sum(entry.stat().st_size for entry in self._entries())

    def _remove_expired(self) -> None:
        now = time.time()
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):  # another server has removed it
                max_age_s = _CLOCK_MARGIN_S if entry.name.endswith(_IMAGE) else _MAX_WRITE_S
                if entry.stat().st_mtime < now - max_age_s:
                    os.unlink(entry.path)

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._folder) as entries:
                return [entry for entry in entries if entry.name.endswith((_IMAGE, _TEMPORARY))]
        except FileNotFoundError:
            self._folder.parent.stat()  # raises unless no image has been stored yet
            return []

    async def _run(self, call: Callable[[], Result]) -> Result:
        """Run ``call`` in a thread. Raises ImageStoreUnavailable."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._threads, call), self._timeout_s)
        except asyncio.TimeoutError as error:
            self._num_errors["timeout"] += 1
            reason = f"{self._folder.parent} does not respond within {self._timeout_s:g} s"
            raise ImageStoreUnavailable(reason, kind="timeout") from error
        except OSError as error:
            kind = os.strerror(error.errno) if error.errno else "unknown"
            self._num_errors[kind] += 1
            reason = f"{error.filename or self._folder}: {kind}"
            raise ImageStoreUnavailable(reason, kind=kind) from error


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.parent.stat()  # raises if the whole folder is missing
        return None


def _extend(path: Path, expires_at: float) -> bool:
    """Extend the expiry time of an image, unless it has expired, because it may then be removed."""
    try:
        current = path.stat().st_mtime
        if current < time.time():
            return False
        if current < expires_at:
            os.utime(path, (expires_at, expires_at))
    except FileNotFoundError:
        path.parent.parent.stat()
        return False
    return True
