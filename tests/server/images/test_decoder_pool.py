"""Decoder processes are isolated.

If one crashes, it is replaced, and only the image that it was decoding fails.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from llava_server.images.decoder_pool import DecoderPool, ImageTiles
from llava_server.images.errors import ImageError
from llava_wire.messages.heartbeat import ImageSpec
from PIL import Image

from tests.server.image_files import encoded, png_claiming, scene
from tests.server.image_slots import decoder_pool
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
T = TypeVar("T")

SPEC = ImageSpec(side=28)
SMALL = base64.b64encode(encoded(scene()))
# 16 million random pixels, so that decoding takes long enough for the process to be killed
NOISE = Image.frombytes("L", (1000, 1000), os.urandom(10**6)).resize((4000, 4000), Image.Resampling.NEAREST)
BIG = base64.b64encode(encoded(NOISE, "BMP"))


def with_pool(use: Callable[[DecoderPool], Awaitable[T]], *, num_processes: int = 1, **limits: Any) -> T:
    async def run() -> T:
        pool = decoder_pool(num_processes, **limits)
        await pool.start()
        try:
            return await use(pool)
        finally:
            pids = pool.pids
            await pool.aclose()
            assert not any(psutil.pid_exists(pid) for pid in pids)

    return asyncio.run(run())


async def error_of(pool: DecoderPool, image: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        await pool.preprocess(image, SPEC, tenant="a")
    return caught.value


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_tiles_have_the_size_of_the_model_and_report_the_size_of_the_image() -> None:
    tiles = with_pool(lambda pool: pool.preprocess(SMALL, SPEC, tenant="a"))
    assert (tiles.width, tiles.height, tiles.num_tiles) == (40, 20, 1)
    assert len(tiles.pixels) == 28 * 28 * 3


def test_an_rgb_image_is_one_tile_of_its_own_size() -> None:
    def preprocess(side: int) -> ImageTiles:
        spec = ImageSpec(side=side, fit="rgb")
        return with_pool(lambda pool: pool.preprocess(SMALL, spec, tenant="a"))

    whole, reduced = preprocess(40), preprocess(10)
    assert (whole.width, whole.height, whole.num_tiles, len(whole.pixels)) == (40, 20, 1, 40 * 20 * 3)
    assert (reduced.width, reduced.height, reduced.num_tiles) == (10, 5, 1)
    assert len(reduced.pixels) == 10 * 5 * 3


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_process_that_crashes_fails_only_the_current_image(number: signal.Signals) -> None:
    async def use(pool: DecoderPool) -> None:
        [pid] = pool.pids
        before = psutil.Process(pid).cpu_times().user
        failing = asyncio.create_task(error_of(pool, BIG))
        await until(lambda: failing.done() or psutil.Process(pid).cpu_times().user > before + 0.02)
        os.kill(pid, number)
        error = await failing
        assert error.code == "invalid_image"
        assert (await pool.preprocess(SMALL, SPEC, tenant="a")).width == 40
        assert pool.pids != [pid]

    with_pool(use)


def test_process_that_crashes_while_idle_is_replaced() -> None:
    async def use(pool: DecoderPool) -> None:
        os.kill(pool.pids[0], signal.SIGKILL)
        await error_of(pool, SMALL)
        assert (await pool.preprocess(SMALL, SPEC, tenant="a")).width == 40

    with_pool(use)


def test_image_that_exceeds_the_time_limit_fails_and_its_process_is_replaced() -> None:
    async def use(pool: DecoderPool) -> None:
        [hanging] = pool.pids
        os.kill(hanging, signal.SIGSTOP)  # simulates a decoder that hangs
        error = await error_of(pool, SMALL)
        assert "longer than 0.2 seconds" in error.message
        await until(lambda: pool.pids and pool.pids != [hanging])

    with_pool(use, timeout_s=0.2)


def test_cancelled_request_does_not_shrink_the_pool() -> None:
    async def use(pool: DecoderPool) -> None:
        request = asyncio.create_task(pool.preprocess(BIG, SPEC, tenant="a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert (await pool.preprocess(SMALL, SPEC, tenant="a")).width == 40

    with_pool(use)


def test_image_that_requires_too_much_memory_fails() -> None:
    async def use(pool: DecoderPool) -> None:
        bomb = base64.b64encode(png_claiming(4_000, 4_000, rows=4_000))
        assert len(bomb) < 100_000
        error = await error_of(pool, bomb)
        assert error.code == "image_too_large"
        assert "96 MiB" in error.message
        assert (await pool.preprocess(SMALL, SPEC, tenant="a")).width == 40

    with_pool(use, memory_bytes=96 * 2**20, timeout_s=60.0)


@pytest.mark.parametrize("size", [(9_000, 450), (450, 9_000)])
def test_long_image_is_padded_without_allocating_its_square_canvas(size: tuple[int, int]) -> None:
    async def use(pool: DecoderPool) -> None:
        tiles = await pool.preprocess(base64.b64encode(png_claiming(*size, rows=size[1])), SPEC, tenant="a")
        assert (tiles.width, tiles.height) == size

    with_pool(use, memory_bytes=200 * 2**20, timeout_s=60.0)  # the canvas alone would need 309 MiB


def test_image_that_exceeds_the_cpu_time_limit_fails_and_its_process_is_replaced() -> None:
    async def use(pool: DecoderPool) -> None:
        [pid] = pool.pids
        error = await error_of(pool, BIG)
        assert error.message.startswith("decoding the image requires more CPU time than the limit of 0.01 s")
        assert (await pool.preprocess(SMALL, SPEC, tenant="a")).width == 40
        assert pool.pids != [pid]

    with_pool(use, cpu_base_s=0.01, cpu_s_per_mp=0.0, timeout_s=60.0)


def test_cpu_time_limit_increases_with_the_size_of_the_image() -> None:
    async def use(pool: DecoderPool) -> None:
        assert (await pool.preprocess(BIG, SPEC, tenant="a")).width == 4_000

    with_pool(use, cpu_base_s=0.2, cpu_s_per_mp=10.0, timeout_s=60.0)


def test_process_has_no_environment_and_no_open_files_except_its_pipes() -> None:
    async def use(pool: DecoderPool) -> None:
        os.environ["LLAVA_SECRET_CANARY"] = "canary"
        try:
            await pool.preprocess(SMALL, SPEC, tenant="a")
            folder = Path(f"/proc/{pool.pids[0]}")
            assert b"canary" not in (folder / "environ").read_bytes()
            assert sorted(path.name for path in (folder / "fd").iterdir()) == ["0", "1", "2"]
            assert os.readlink(folder / "cwd") == "/"
            limits = (folder / "limits").read_text()
            assert "Max open files            3" in limits
        finally:
            del os.environ["LLAVA_SECRET_CANARY"]

    with_pool(use)


def test_processes_exit_when_the_server_is_killed() -> None:
    program = (
        "import asyncio, os\n"
        "from tests.server.image_slots import decoder_pool\n"
        "async def main():\n"
        "    pool = decoder_pool(1)\n"
        "    await pool.start()\n"
        "    print(*pool.pids, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 1, done.stderr
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_further_processes_are_started_when_images_arrive_at_the_same_time() -> None:
    async def use(pool: DecoderPool) -> None:
        await pool.preprocess(SMALL, SPEC, tenant="a")
        assert len(pool.pids) == 1
        results = await asyncio.gather(*(pool.preprocess(SMALL, SPEC, tenant=str(i % 3)) for i in range(20)))
        assert len({tiles.pixels for tiles in results}) == 1
        assert len(pool.pids) == 2

    with_pool(use, num_processes=2)
