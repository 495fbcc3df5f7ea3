"""Pictures are decoded by processes that have nothing to lose, and losing one costs one picture."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from llava_server.images.decoder_pool import DecodePool
from llava_server.images.errors import PictureLimits, PictureRefused
from llava_wire.messages.heartbeat import ImageSpec
from PIL import Image

from tests.server.pictures import encoded, png_claiming, scene
from tests.waiting import wait_until

T = TypeVar("T")

SPEC = ImageSpec(side=28)
SMALL = base64.b64encode(encoded(scene()))
# 16 million random pixels: enough work that there is time to kill in the middle
NOISE = Image.frombytes("L", (1000, 1000), os.urandom(10**6)).resize((4000, 4000), Image.Resampling.NEAREST)
BIG = base64.b64encode(encoded(NOISE, "BMP"))


def with_pool(use: Callable[[DecodePool], Awaitable[T]], *, num_children: int = 1, **limits: float) -> T:
    async def run() -> T:
        pool = DecodePool(num_children=num_children, limits=PictureLimits(**limits))  # type: ignore[arg-type]
        await pool.start()
        try:
            return await use(pool)
        finally:
            pids = pool.pids
            await pool.aclose()
            assert not any(psutil.pid_exists(pid) for pid in pids)

    return asyncio.run(run())


async def refusal_of(pool: DecodePool, picture: bytes) -> PictureRefused:
    with pytest.raises(PictureRefused) as caught:
        await pool.fit(picture, SPEC)
    return caught.value


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_picture_has_the_models_size_and_knows_its_own() -> None:
    picture = with_pool(lambda pool: pool.fit(SMALL, SPEC))
    assert (picture.width, picture.height, picture.num_tiles) == (40, 20, 1)
    assert len(picture.pixels) == 28 * 28 * 3


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_child_that_dies_in_mid_picture_costs_that_picture_only(number: signal.Signals) -> None:
    async def use(pool: DecodePool) -> None:
        [victim] = pool.pids
        before = psutil.Process(victim).cpu_times().user
        dying = asyncio.create_task(refusal_of(pool, BIG))
        await until(lambda: dying.done() or psutil.Process(victim).cpu_times().user > before + 0.02)
        os.kill(victim, number)
        refused = await dying
        assert refused.code == "invalid_image"
        assert (await pool.fit(SMALL, SPEC)).width == 40
        assert pool.pids != [victim]

    with_pool(use)


def test_child_that_dies_while_idle_is_replaced() -> None:
    async def use(pool: DecodePool) -> None:
        os.kill(pool.pids[0], signal.SIGKILL)
        await refusal_of(pool, SMALL)
        assert (await pool.fit(SMALL, SPEC)).width == 40

    with_pool(use)


def test_picture_over_its_time_is_refused_and_its_child_replaced() -> None:
    async def use(pool: DecodePool) -> None:
        [slow] = pool.pids
        os.kill(slow, signal.SIGSTOP)  # a decoder that hangs
        refused = await refusal_of(pool, SMALL)
        assert "longer than 0.2 s" in refused.message
        await until(lambda: pool.pids and pool.pids != [slow])

    with_pool(use, timeout_s=0.2)


def test_caller_that_leaves_in_mid_picture_takes_no_child_along() -> None:
    async def use(pool: DecodePool) -> None:
        leaving = asyncio.create_task(pool.fit(BIG, SPEC))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (await pool.fit(SMALL, SPEC)).width == 40

    with_pool(use)


def test_picture_that_needs_too_much_memory_is_refused() -> None:
    async def use(pool: DecodePool) -> None:
        bomb = base64.b64encode(png_claiming(4_000, 4_000, rows=4_000))
        assert len(bomb) < 100_000
        refused = await refusal_of(pool, bomb)
        assert refused.code == "image_too_large"
        assert "96 MiB" in refused.message
        assert (await pool.fit(SMALL, SPEC)).width == 40

    with_pool(use, memory_bytes=96 * 2**20, timeout_s=60.0)


@pytest.mark.parametrize("size", [(9_000, 450), (450, 9_000)])
def test_long_picture_is_padded_without_its_square_canvas(size: tuple[int, int]) -> None:
    async def use(pool: DecodePool) -> None:
        picture = await pool.fit(base64.b64encode(png_claiming(*size, rows=size[1])), SPEC)
        assert (picture.width, picture.height) == size

    with_pool(use, memory_bytes=200 * 2**20, timeout_s=60.0)  # the canvas alone would take 309 MiB


def test_child_over_its_processor_time_dies_and_is_replaced() -> None:
    async def use(pool: DecodePool) -> None:
        for _ in range(100):  # the limit counts whole seconds
            try:
                await pool.fit(BIG, SPEC)
            except PictureRefused as refused:  # noqa: PERF203
                assert "processor time" in refused.message
                break
        else:
            raise AssertionError("the limit did not bite")

    with_pool(use, cpu_s=-1.0, timeout_s=60.0)


def test_child_has_no_environment_and_nothing_open_but_its_pipes() -> None:
    async def use(pool: DecodePool) -> None:
        os.environ["LLAVA_SECRET_CANARY"] = "canary"
        try:
            await pool.fit(SMALL, SPEC)
            folder = Path(f"/proc/{pool.pids[0]}")
            assert b"canary" not in (folder / "environ").read_bytes()
            assert sorted(path.name for path in (folder / "fd").iterdir()) == ["0", "1", "2"]
            assert os.readlink(folder / "cwd") == "/"
            limits = (folder / "limits").read_text()
            assert "Max open files            3" in limits
        finally:
            del os.environ["LLAVA_SECRET_CANARY"]

    with_pool(use)


def test_children_end_when_the_server_dies() -> None:
    import subprocess
    import sys

    program = (
        "import asyncio, os\n"
        "from llava_server.images.decoder_pool import DecodePool\n"
        "from llava_server.images.errors import PictureLimits\n"
        "async def main():\n"
        "    pool = DecodePool(num_children=2, limits=PictureLimits())\n"
        "    await pool.start()\n"
        "    print(*pool.pids, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_many_callers_share_few_children() -> None:
    async def use(pool: DecodePool) -> None:
        pictures = await asyncio.gather(*(pool.fit(SMALL, SPEC) for _ in range(20)))
        assert {picture.pixels for picture in pictures} == {pictures[0].pixels}
        assert len(pool.pids) == 2

    with_pool(use, num_children=2)
