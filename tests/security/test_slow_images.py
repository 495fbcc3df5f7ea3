"""Images that require much CPU time delay neither the images of other API keys nor the server."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from llava_server.images.decoder_pool import DecoderPool
from llava_server.images.errors import ImageError
from llava_server.images.jpeg_scans import num_scans
from llava_wire.messages.heartbeat import ImageSpec
from PIL import Image

from tests.machine_speed import scaled
from tests.security.slow_images import slow_bmp, slow_jpeg, slow_png, slow_tiff
from tests.server.conftest import Serve, Server, Stack
from tests.server.image_files import encoded, part, scene
from tests.server.image_slots import decoder_pool
from tests.server.scripted_worker import MODEL

ATTACKERS = [f"attacker-{number}" for number in range(3)]
VICTIM = "victim-0"
NUM_SLOW = 12  # number of slow images in the queue


async def send(http: httpx2.AsyncClient, key: str, file: bytes) -> httpx2.Response:
    content = [part(file), {"type": "text", "text": "say fine"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    return await http.post(
        "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=scaled(60)
    )


@asynccontextmanager
async def attack(
    server: Server, keys: list[str], *, num_images: int = NUM_SLOW
) -> AsyncIterator[tuple[httpx2.AsyncClient, list[asyncio.Task[httpx2.Response]]]]:
    """Send slow images with these keys at the same time. Disconnect when the ``with`` block ends."""
    # Different colors, so that each image is decoded
    files = [slow_jpeg(2000, 2000, num_scans=64, gray=100 + number) for number in range(num_images)]
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.url, limits=limits) as http:
        slow = [
            asyncio.create_task(send(http, keys[index % len(keys)], file)) for index, file in enumerate(files)
        ]
        try:
            while server.metric("llava_num_open_requests") < num_images and not any(map(_is_done, slow)):
                await asyncio.sleep(0.001)
            yield http, slow
        finally:
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)


def _is_done(task: asyncio.Task[Any]) -> bool:
    return task.done()


@pytest.mark.parametrize("num_attackers", [1, 3])
@pytest.mark.usefixtures("worker")
def test_images_of_another_key_do_not_wait_for_a_queue_of_slow_images(
    serve: Serve, num_attackers: int
) -> None:
    """Most slow images are still waiting when the other key's responses arrive."""
    server = serve(auth=True, api_keys=",".join([*ATTACKERS, VICTIM]), image_workers=4)

    async def check() -> list[int]:
        num_done = []
        async with attack(server, ATTACKERS[:num_attackers]) as (http, slow):
            for width in (40, 41):
                response = await send(http, VICTIM, encoded(scene(width)))
                assert response.status_code == 200, response.text
                num_done.append(sum(map(_is_done, slow)))
        return num_done

    num_done = asyncio.run(check())
    # One slot is free, or becomes free when the first of the slow images has been decoded.
    assert num_done[-1] <= NUM_SLOW / 2, num_done


@pytest.mark.usefixtures("worker")
def test_more_images_of_one_key_than_the_limit_are_rejected_and_other_keys_are_not(serve: Serve) -> None:
    server = serve(auth=True, api_keys=",".join([*ATTACKERS, VICTIM]), image_workers=1, max_tenant_jobs=2)

    async def check() -> tuple[list[httpx2.Response], httpx2.Response]:
        async with attack(server, ATTACKERS[:1], num_images=6) as (http, slow):
            response = await send(http, VICTIM, encoded(scene()))
            return [task.result() for task in slow if task.done()], response

    finished, response = asyncio.run(check())
    assert response.status_code == 200, response.text
    rejected = [each for each in finished if each.status_code == 429]
    assert rejected  # of six images, at most two were waiting for a thread or a decoder process
    for each in rejected:
        assert "limit of 2 requests that wait for" in each.json()["error"]["message"]
        assert float(each.headers["retry-after"]) > 0
    num_rejected = sum(
        server.metric("llava_stage_rejections_total", stage=stage, reason="tenant_limit")
        for stage in ("threads", "image_decoding")
    )
    assert num_rejected == len(rejected)


def test_a_jpeg_with_hundreds_of_scans_is_rejected(stack: Stack) -> None:
    file = slow_jpeg(16_000, 2_500, num_scans=240)
    assert len(file) < 200_000
    response = stack.chat([part(file), {"type": "text", "text": "look"}])
    assert response.status_code == 400
    assert "more than 64 scans" in response.json()["error"]["message"]


def test_scans_are_counted_up_to_the_end_of_the_image_and_not_in_other_data() -> None:
    """The data of segments and the video of a motion photo can contain any bytes."""
    file = encoded(scene(), "JPEG", progressive=True)
    number = file.count(b"\xff\xda")
    assert number == num_scans(file, limit=64) > 1
    scan = b"\xff\xda\x00\x04\x00\x00"
    comment = b"\xff\xfe\x03\xea" + 250 * b"\xff\xda\x00\x00"
    assert num_scans(file[:2] + comment + file[2:] + 99 * scan, limit=64) == number
    assert num_scans(file[:-2] + 99 * (b"\xff\x01" + scan) + file[-2:], limit=64) == 65  # FF 01 has no length
    assert num_scans(encoded(scene()), limit=64) == 0
    assert num_scans(file[:2] + 10**7 * b"\xff", limit=64) == 0  # in linear time


def test_a_file_that_requires_more_cpu_time_than_its_size_explains_is_rejected() -> None:
    files = [
        slow_jpeg(1_000, 1_000, num_scans=2_000),
        slow_png(200_000),
        slow_tiff(150_000),
        slow_bmp(1_000, 1_000),
    ]

    async def decode(pool: DecoderPool) -> None:
        for file in files:
            with pytest.raises(ImageError, match="more CPU time than the limit of 0.1 seconds plus 0.1 sec"):
                await pool.preprocess(base64.b64encode(file), ImageSpec(side=28), tenant="a")

    run_with_pool(decode, cpu_base_s=0.1, max_scans=10**6)


def test_images_that_are_not_crafted_do_not_reach_the_limit_on_cpu_time() -> None:
    """Random pixels at the highest quality take longer than any photo."""
    size = (1_000, 1_000)
    rgb = Image.frombytes("RGB", size, os.urandom(3_000_000))
    files = [
        encoded(rgb, "JPEG", quality=95, progressive=True),
        encoded(rgb, "PNG", compress_level=1),
        encoded(rgb, "WEBP", quality=100, method=0),
        encoded(Image.frombytes("P", size, os.urandom(1_000_000)), "GIF"),
        encoded(rgb, "BMP"),
        encoded(rgb, "TIFF", compression="tiff_lzw"),
    ]

    async def decode(pool: DecoderPool) -> None:
        for file in files:
            tiles = await pool.preprocess(base64.b64encode(file), ImageSpec(side=28), tenant="a")
            assert (tiles.width, tiles.height) == size

    run_with_pool(decode, cpu_base_s=0.1)


def run_with_pool(use: Callable[[DecoderPool], Awaitable[None]], **limits: Any) -> None:
    async def run() -> None:
        pool = decoder_pool(**limits)
        await pool.start()
        try:
            await use(pool)
        finally:
            await pool.aclose()

    asyncio.run(run())
