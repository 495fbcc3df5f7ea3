"""A pool of decoder processes. Each process decodes one image at a time.

API keys share the processes fairly. Each process is a slot of FairSlots, which the API key of an image holds
until the process is ready for the next image. One process is started in advance, and the others when images
arrive at the same time, because each of them takes 0.06 s of CPU time and 20 MB.

A process is replaced if it crashes, exceeds its time limit, is interrupted while decoding, or has decoded
``_IMAGES_PER_PROCESS`` images. Pipe I/O runs in threads, so that large images and slow process startup do not
block the event loop. Invariant: every process is idle, starting, or decoding exactly one image. A starting
or decoding process has a slot, and there are at least as many free slots as idle processes.
``aclose`` kills all processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from llava_wire.messages.heartbeat import ImageSpec

from llava_server.fair_slots import FairSlots, Slot
from llava_server.images.color import Transparency
from llava_server.images.data_url import DataEncoding
from llava_server.images.errors import ImageLimits, image_error
from llava_server.images.pipe_frames import BrokenFrame, read_frame, write_frame
from llava_server.supervised_tasks import SupervisedTasks

__all__ = ["DecoderPool", "ImageTiles"]

logger = logging.getLogger(__name__)

_IMAGES_PER_PROCESS = 256
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from llava_server.images.decoder_process import main; main()"
)
_SOURCE_ROOT = str(Path(__file__).resolve().parents[2])


class ImageTiles:
    """An image preprocessed for a model.

    ``pixels`` contains ``num_tiles * side * side * 3`` bytes of RGB data. ``width`` and ``height`` are the
    size of the original image, in pixels. For the mode "rgb", there is one tile of ``width`` x ``height``
    pixels.
    """

    __slots__ = ("height", "num_tiles", "pixels", "width")

    def __init__(self, pixels: bytes, *, num_tiles: int, width: int, height: int) -> None:
        self.pixels = pixels
        self.num_tiles = num_tiles
        self.width = width
        self.height = height


class DecoderPool:
    """A pool of processes that convert encoded images to tiles, with at most one process per slot.

    Call ``start`` before use and ``aclose`` after use. If a process fails to start, ``count_crash`` is called
    and the start is retried.
    """

    def __init__(
        self,
        *,
        slots: FairSlots,
        limits: ImageLimits,
        transparency: Transparency = "white",
        count_crash: Callable[[str], None] | None = None,
    ) -> None:
        self._slots = slots
        self._limits = limits
        self._transparency = transparency
        self._idle: list[_DecoderProcess] = []  # most recently used last
        self._processes: set[_DecoderProcess] = set()
        self._starting = SupervisedTasks(count_crash)
        # Two threads per process, because the thread reading from a replaced process may still be blocked.
        self._threads = ThreadPoolExecutor(2 * slots.num_slots, thread_name_prefix="image")
        self._is_closed = False
        self._has_warned = False

    @property
    def pids(self) -> list[int]:
        """The process IDs of the running processes, sorted."""
        return sorted(process.pid for process in self._processes)

    async def start(self) -> None:
        """Start one process and wait until it is ready. Raises RuntimeError if it fails to start."""
        await self._add_process()

    async def preprocess(
        self, data: bytes, spec: ImageSpec, *, tenant: str, encoding: DataEncoding = "base64"
    ) -> ImageTiles:
        """Wait for an idle process, then decode and preprocess one image. ``tenant`` is the API key.

        Raises ImageError, or ApiError (429, 503) if the tenant has too many waiting images or the wait takes
        too long.
        """
        slot, process = await self._acquire(tenant)
        try:
            head, pixels = await self._request(process, data, spec, encoding)
        except BaseException:
            self._replace(process, slot)  # the pipe may contain a partial frame
            raise
        if process.num_images >= _IMAGES_PER_PROCESS:
            self._replace(process, slot)
        else:
            self._idle.append(process)
            slot.release()
        if "error" in head:
            raise image_error(str(head["error"]), head, self._limits)
        width, height = int(head["width"]), int(head["height"])
        num_tile_pixels = width * height if spec.fit == "rgb" else spec.side**2
        num_tiles, rest = divmod(len(pixels), num_tile_pixels * 3)
        if rest or not num_tiles:
            raise image_error("crashed", {}, self._limits)
        return ImageTiles(pixels, num_tiles=num_tiles, width=width, height=height)

    async def aclose(self) -> None:
        """Kill all processes, including busy ones."""
        self._is_closed = True
        await self._starting.aclose()
        for process in tuple(self._processes):
            self._kill(process)
        self._threads.shutdown(wait=True)
        for process in self._processes:  # that were still starting
            process.kill()
            process.wait()

    async def _acquire(self, tenant: str) -> tuple[Slot, _DecoderProcess]:
        """Wait for a slot and an idle process. If there is only a slot, let it start a process."""
        while True:
            slot = await self._slots.acquire(tenant)
            if self._idle:
                return slot, self._idle.pop()
            self._start_in_background(slot)

    async def _request(
        self, process: _DecoderProcess, data: bytes, spec: ImageSpec, encoding: DataEncoding
    ) -> tuple[dict[str, Any], bytes]:
        request = {
            "encoding": encoding,
            "side": spec.side,
            "fit": spec.fit,
            "background": spec.background,
            "grid": spec.grid,
            "transparency": self._transparency,
            **self._limits.for_decoder(),
        }
        response = asyncio.get_running_loop().run_in_executor(self._threads, process.request, request, data)
        try:
            return await asyncio.wait_for(response, self._limits.timeout_s)
        except asyncio.TimeoutError as error:
            logger.warning(
                "image decoder %d exceeded its time limit of %g s and was killed",
                process.pid,
                self._limits.timeout_s,
            )
            raise image_error("timeout", {}, self._limits) from error
        except _CpuTimeExceeded as error:
            raise image_error("cpu_time", {}, self._limits) from error
        except (BrokenFrame, OSError) as error:
            logger.warning("image decoder %d crashed on an image of %d encoded bytes", process.pid, len(data))
            raise image_error("crashed", {}, self._limits) from error

    async def _add_process(self, slot: Slot | None = None) -> None:
        """Start a process, and then release ``slot``."""
        process = await asyncio.get_running_loop().run_in_executor(self._threads, self._start_process)
        if process.sandbox_error and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "image decoders are running without the seccomp sandbox: %s", process.sandbox_error
            )
        self._idle.append(process)
        if slot is not None:
            slot.release()

    def _start_process(self) -> _DecoderProcess:
        """Start a process. This runs in a thread, and completes even if the caller is cancelled."""
        process = _DecoderProcess(self._limits.memory_bytes)
        self._processes.add(process)
        return process

    def _replace(self, process: _DecoderProcess, slot: Slot) -> None:
        self._kill(process)
        if not self._is_closed:
            self._start_in_background(slot)

    def _start_in_background(self, slot: Slot) -> None:
        self._starting.start("image decoder", partial(self._add_process, slot))

    def _kill(self, process: _DecoderProcess) -> None:
        self._processes.discard(process)
        process.kill()
        self._threads.submit(process.wait)  # in a thread, because the kernel may need time to free memory


class _CpuTimeExceeded(Exception):
    """The process was terminated because an image exceeded the limit on CPU time."""


class _DecoderProcess:
    """A decoder process and its two pipes. The constructor blocks until the process is ready."""

    def __init__(self, memory_bytes: int) -> None:
        self.num_images = 0
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, _SOURCE_ROOT, str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # Ctrl-C must not stop the process while the server drains
        )
        try:
            if (frame := self._read()) is None:
                raise RuntimeError("An image decoder process exited before it was ready.")
        except BaseException:
            self.kill()
            self.wait()
            raise
        self.sandbox_error: str | None = frame[0]["sandbox_error"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Send one image and wait for the response.

        Raises _CpuTimeExceeded, BrokenFrame or OSError if the process exits.
        """
        write_frame(cast(BinaryIO, self._process.stdin), head, body)
        frame = self._read()
        if frame is None:
            if self._process.wait() == -signal.SIGPROF:
                raise _CpuTimeExceeded
            raise BrokenFrame("The decoder process exited before it sent a response.")
        self.num_images += 1
        return frame

    def kill(self) -> None:
        """Kill the process. A ``request`` call in another thread then raises BrokenFrame or OSError."""
        self._process.kill()

    def wait(self) -> None:
        """Wait until the killed process has exited, and close its pipes."""
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # close() flushes, which fails if the reader has exited
            self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> tuple[dict[str, Any], bytes] | None:
        return read_frame(cast(BinaryIO, self._process.stdout))
