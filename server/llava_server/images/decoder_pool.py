"""The pool of decoder processes: started ahead, one image at a time each, replaced on any doubt.

A process is replaced when it crashes, exceeds its time, is interrupted in the middle of an image, or has
decoded its number of images. A thread waits for each pipe, so neither a large image nor a slow start blocks
the event loop. Invariant: every process is idle, decoding exactly one image, or being replaced; ``aclose``
leaves none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

from llava_wire.messages.heartbeat import ImageSpec

from llava_server.images.errors import ImageLimits, image_error
from llava_server.images.pipe_frames import BrokenFrame, read_frame, write_frame

__all__ = ["DecoderPool", "ImageTiles"]

logger = logging.getLogger(__name__)

_IMAGES_PER_PROCESS = 256
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from llava_server.images.decoder_process import main; main()"
)
_SOURCE_ROOT = str(Path(__file__).resolve().parents[2])


class ImageTiles:
    """An image preprocessed for a model. ``pixels`` are ``num_tiles * side * side * 3`` bytes of RGB;
    ``width`` and ``height`` are the original's."""

    __slots__ = ("height", "num_tiles", "pixels", "width")

    def __init__(self, pixels: bytes, *, num_tiles: int, width: int, height: int) -> None:
        self.pixels = pixels
        self.num_tiles = num_tiles
        self.width = width
        self.height = height


class DecoderPool:
    """``num_processes`` processes that turn base64 text into tiles. Call ``start`` and ``aclose``."""

    def __init__(self, *, num_processes: int, limits: ImageLimits) -> None:
        self._num_processes = num_processes
        self._limits = limits
        self._idle: asyncio.LifoQueue[_DecoderProcess] = asyncio.LifoQueue()  # the last used one first
        self._processes: set[_DecoderProcess] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        # Twice as many threads as processes: a process that is being replaced still has its reader.
        self._threads = ThreadPoolExecutor(2 * num_processes, thread_name_prefix="image")
        self._is_closed = False
        self._has_warned = False

    @property
    def pids(self) -> list[int]:
        """The IDs of the running processes."""
        return sorted(process.pid for process in self._processes)

    async def start(self) -> None:
        """Return when every process is ready. Raises RuntimeError if one cannot start."""
        await asyncio.gather(*(self._add_process() for _ in range(self._num_processes)))

    async def preprocess(self, base64: bytes, spec: ImageSpec) -> ImageTiles:
        """Decode and preprocess one image; wait while all processes are busy. Raises ImageError."""
        process = await self._idle.get()
        try:
            head, pixels = await self._request(process, base64, spec)
        except BaseException:
            self._replace(process)  # its pipe may be in the middle of a frame
            raise
        if process.num_images >= _IMAGES_PER_PROCESS:
            self._replace(process)
        else:
            self._idle.put_nowait(process)
        if "error" in head:
            raise image_error(str(head["error"]), head, self._limits)
        num_tiles, rest = divmod(len(pixels), spec.side * spec.side * 3)
        if rest or not num_tiles:
            raise image_error("crashed", {}, self._limits)
        return ImageTiles(pixels, num_tiles=num_tiles, width=int(head["width"]), height=int(head["height"]))

    async def aclose(self) -> None:
        """End every process, whatever it is doing."""
        self._is_closed = True
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        for process in tuple(self._processes):
            self._kill(process)
        self._threads.shutdown(wait=True)

    async def _request(
        self, process: _DecoderProcess, base64: bytes, spec: ImageSpec
    ) -> tuple[dict[str, Any], bytes]:
        request = {
            "side": spec.side,
            "fit": spec.fit,
            "background": spec.background,
            "grid": spec.grid,
            **self._limits.for_decoder(),
        }
        response = asyncio.get_running_loop().run_in_executor(self._threads, process.request, request, base64)
        try:
            return await asyncio.wait_for(response, self._limits.timeout_s)
        except asyncio.TimeoutError as error:
            logger.warning("picture child %d killed: over its %g s", process.pid, self._limits.timeout_s)
            raise image_error("timeout", {}, self._limits) from error
        except (BrokenFrame, OSError) as error:
            logger.warning("picture child %d died over a picture of %d bytes", process.pid, len(base64))
            raise image_error("crashed", {}, self._limits) from error

    async def _add_process(self) -> None:
        loop = asyncio.get_running_loop()
        process = await loop.run_in_executor(self._threads, _DecoderProcess, self._limits.memory_bytes)
        self._processes.add(process)
        if process.sandbox_error and not self._has_warned:
            self._has_warned = True
            logger.warning("picture children are less confined than they could be: %s", process.sandbox_error)
        if self._is_closed:
            self._kill(process)
        else:
            self._idle.put_nowait(process)

    def _replace(self, process: _DecoderProcess) -> None:
        self._kill(process)
        if not self._is_closed:
            task = asyncio.get_running_loop().create_task(self._retry_add_process())
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)

    async def _retry_add_process(self) -> None:
        while True:
            try:
                return await self._add_process()
            except (RuntimeError, OSError):  # noqa: PERF203
                logger.exception("a picture child cannot start; trying again in 1 s")
                await asyncio.sleep(1.0)

    def _kill(self, process: _DecoderProcess) -> None:
        self._processes.discard(process)
        process.kill()
        self._threads.submit(process.wait)  # the kernel may take a while to free a gigabyte


class _DecoderProcess:
    """One process and its two pipes. The constructor blocks until the process is ready."""

    def __init__(self, memory_bytes: int) -> None:
        self.num_images = 0
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, _SOURCE_ROOT, str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # Ctrl-C must reach the server only, which finishes open requests first
        )
        try:
            if (frame := self._read()) is None:
                raise RuntimeError("a picture child ended before it was ready")
        except BaseException:
            self.kill()
            self.wait()
            raise
        self.sandbox_error: str | None = frame[0]["sandbox_error"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Send one image and block until the response. Raises BrokenFrame or OSError if the process dies."""
        write_frame(cast(BinaryIO, self._process.stdin), head, body)
        frame = self._read()
        if frame is None:
            raise BrokenFrame("the child ended before its answer")
        self.num_images += 1
        return frame

    def kill(self) -> None:
        """End the process. A thread blocked in ``request`` gets BrokenFrame or OSError."""
        self._process.kill()

    def wait(self) -> None:
        """Wait for the end of a killed process and close its pipes."""
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # buffered bytes have no reader any more
            self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> tuple[dict[str, Any], bytes] | None:
        return read_frame(cast(BinaryIO, self._process.stdout))
