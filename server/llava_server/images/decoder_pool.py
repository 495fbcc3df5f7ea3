"""The picture children: started ahead, one picture at a time each, thrown away at the first doubt.

A child is replaced when it crashes, overruns its time, was interrupted in mid-picture, or has served its
number of pictures. Each waits for its pipe in a thread of its own, so neither a big picture nor a slow
start holds the event loop. Invariant: every child is idle, busy with exactly one order, or being replaced;
``aclose`` leaves none.
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

from llava_server.images.errors import PictureLimits, refusal
from llava_server.images.pipe_frames import BrokenFrame, read_frame, write_frame

__all__ = ["DecodePool", "Picture"]

logger = logging.getLogger(__name__)

_PICTURES_PER_CHILD = 256
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); from llava_server.images.decoder_process import main; main()"
)
_SOURCE_ROOT = str(Path(__file__).resolve().parents[2])


class Picture:
    """A picture fitted to a model: ``pixels`` are ``num_tiles * side * side * 3`` bytes of RGB."""

    __slots__ = ("height", "num_tiles", "pixels", "width")

    def __init__(self, pixels: bytes, *, num_tiles: int, width: int, height: int) -> None:
        self.pixels = pixels
        self.num_tiles = num_tiles
        self.width = width
        self.height = height


class DecodePool:
    """``num_children`` processes that turn base64 text into tiles. Use ``start`` and ``aclose``."""

    def __init__(self, *, num_children: int, limits: PictureLimits) -> None:
        self._num_children = num_children
        self._limits = limits
        self._idle: asyncio.LifoQueue[_Child] = asyncio.LifoQueue()  # the warmest first
        self._children: set[_Child] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        # one thread more than children: a child that is being replaced still has its reader
        self._threads = ThreadPoolExecutor(2 * num_children, thread_name_prefix="picture")
        self._is_closed = False
        self._has_warned = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the living children, for tests and for people."""
        return sorted(child.pid for child in self._children)

    async def start(self) -> None:
        """Returns when every child is ready. Raises RuntimeError if one cannot start."""
        await asyncio.gather(*(self._add_child() for _ in range(self._num_children)))

    async def fit(self, base64: bytes, spec: ImageSpec) -> Picture:
        """Decodes and fits one picture. Raises PictureRefused; waits while all children are busy."""
        child = await self._idle.get()
        try:
            head, pixels = await self._ask(child, base64, spec)
        except BaseException:
            self._replace(child)  # its pipe may be in the middle of a frame
            raise
        if child.num_served >= _PICTURES_PER_CHILD:
            self._replace(child)
        else:
            self._idle.put_nowait(child)
        if "refused" in head:
            raise refusal(str(head["refused"]), head, self._limits)
        num_tiles, rest = divmod(len(pixels), spec.side * spec.side * 3)
        if rest or not num_tiles:
            raise refusal("crashed", {}, self._limits)
        return Picture(pixels, num_tiles=num_tiles, width=int(head["width"]), height=int(head["height"]))

    async def aclose(self) -> None:
        """Ends every child, whatever it is doing."""
        self._is_closed = True
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        for child in tuple(self._children):
            self._drop(child)
        self._threads.shutdown(wait=True)

    async def _ask(self, child: _Child, base64: bytes, spec: ImageSpec) -> tuple[dict[str, Any], bytes]:
        order = {
            "side": spec.side,
            "fit": spec.fit,
            "background": spec.background,
            "grid": spec.grid,
            **self._limits.order(),
        }
        answer = asyncio.get_running_loop().run_in_executor(self._threads, child.ask, order, base64)
        try:
            return await asyncio.wait_for(answer, self._limits.timeout_s)
        except asyncio.TimeoutError as error:
            logger.warning("picture child %d killed: over its %g s", child.pid, self._limits.timeout_s)
            raise refusal("timeout", {}, self._limits) from error
        except (BrokenFrame, OSError) as error:
            logger.warning("picture child %d died over a picture of %d bytes", child.pid, len(base64))
            raise refusal("crashed", {}, self._limits) from error

    async def _add_child(self) -> None:
        loop = asyncio.get_running_loop()
        child = await loop.run_in_executor(self._threads, _Child, self._limits.memory_bytes)
        self._children.add(child)
        if child.weakness and not self._has_warned:
            self._has_warned = True
            logger.warning("picture children are less confined than they could be: %s", child.weakness)
        if self._is_closed:
            self._drop(child)
        else:
            self._idle.put_nowait(child)

    def _replace(self, child: _Child) -> None:
        self._drop(child)
        if not self._is_closed:
            task = asyncio.get_running_loop().create_task(self._add_child_until_it_works())
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)

    async def _add_child_until_it_works(self) -> None:
        while True:
            try:
                return await self._add_child()
            except (RuntimeError, OSError):  # noqa: PERF203
                logger.exception("a picture child cannot start; trying again in 1 s")
                await asyncio.sleep(1.0)

    def _drop(self, child: _Child) -> None:
        self._children.discard(child)
        child.kill()
        self._threads.submit(child.reap)  # the kernel may take a while to free a gigabyte


class _Child:
    """One process and its two pipes; made in a thread, since it returns only when the process is ready."""

    def __init__(self, memory_bytes: int) -> None:
        self.num_served = 0
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT, _SOURCE_ROOT, str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the server, which finishes open requests first
        )
        try:
            if (frame := self._read()) is None:
                raise RuntimeError("a picture child ended before it was ready")
        except BaseException:
            self.kill()
            self.reap()
            raise
        self.weakness: str | None = frame[0]["weakness"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, order: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Blocks until the child answers. Raises BrokenFrame or OSError when it dies."""
        write_frame(cast(BinaryIO, self._process.stdin), order, body)
        frame = self._read()
        if frame is None:
            raise BrokenFrame("the child ended before its answer")
        self.num_served += 1
        return frame

    def kill(self) -> None:
        """Ends the process; a thread blocked in ``ask`` gets BrokenFrame or OSError."""
        self._process.kill()

    def reap(self) -> None:
        """After ``kill``: waits for the end and closes the pipes."""
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # what is still buffered has no reader any more
            self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> tuple[dict[str, Any], bytes] | None:
        return read_frame(cast(BinaryIO, self._process.stdout))
