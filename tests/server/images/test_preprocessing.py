"""For image files of every mode and size, the tiles are bit-identical to the output of plain PIL code.

The reference is either a straightforward implementation of the original LLaVA's rules or a PIL-based
processor from transformers.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llava_server.images.decoder_pool import ImageTiles
from llava_server.images.decoder_process import preprocess
from llava_server.images.image_processing import ResizeMode, resize
from llava_wire.messages.heartbeat import ImageSpec
from llava_worker.model.config.image_grid import ImageLayout, best_resolution, size_on_canvas
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from tests.server.image_slots import decoder_pool
from tests.server.images.test_image_processing import noise, original_pad, pil_resize, processed

Pixels = NDArray[np.uint8]

SIDE = 28
MEAN_COLOR = (122, 116, 104)
GRID = ((SIDE, 2 * SIDE), (2 * SIDE, SIDE), (2 * SIDE, 2 * SIDE), (3 * SIDE, SIDE), (SIDE, 3 * SIDE))
HD_GRID = tuple((SIDE * n, SIDE * m) for n, m in [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (6, 1)])

LENGTHS = st.one_of(st.integers(1, 120), st.sampled_from([1, 2, 700]))
SIZES = st.tuples(LENGTHS, LENGTHS)
RESIZE_MODES = st.sampled_from(["pad", "crop", "squash", "anyres", "hd"])
PIL_MODES = ["RGB", "L", "P", "PA", "RGBA", "LA", "CMYK", "1", "I;16"]


def original_crop(image: Image.Image, side: int) -> Pixels:
    """Resize the shorter edge to ``side`` and crop the center, as CLIP's processor does."""
    width, height = image.size
    scaled = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    resized = np.asarray(pil_resize(image, scaled))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]


def original_anyres(image: Image.Image, side: int, grid: tuple[tuple[int, int], ...]) -> Pixels:
    """Return the squashed image, followed by the tiles of the image on the best canvas.

    The image is resized and padded to fit that canvas, which is selected according to LLaVA-1.6's rules.
    """
    best, most, least = None, -1, math.inf
    for across, down in grid:
        scale = min(across / image.width, down / image.height)
        effective = min(int(image.width * scale) * int(image.height * scale), image.width * image.height)
        wasted = across * down - effective
        if effective > most or (effective == most and wasted < least):
            best, most, least = (across, down), effective, wasted
    assert best is not None
    inner = size_on_canvas(image.size, best)
    canvas = np.zeros((best[1], best[0], 3), np.uint8)
    top, left = (best[1] - inner[1]) // 2, (best[0] - inner[0]) // 2
    resized = np.asarray(pil_resize(image, inner))
    canvas[top : top + inner[1], left : left + inner[0]] = resized
    tiles = [np.asarray(pil_resize(image, (side, side)))]
    for y, x in itertools.product(range(0, best[1], side), range(0, best[0], side)):
        tiles.append(canvas[y : y + side, x : x + side])
    return np.concatenate(tiles)


def reference(image: Image.Image, resize_mode: str) -> Pixels:
    if resize_mode == "pad":
        return original_pad(image, SIDE)
    if resize_mode == "crop":
        return original_crop(image, SIDE)
    if resize_mode == "squash":
        return np.asarray(pil_resize(image, (SIDE, SIDE)))
    return original_anyres(image, SIDE, GRID if resize_mode == "anyres" else HD_GRID)


def in_mode(mode: str, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Return an image to save, and the RGB image that is expected after loading it.

    The expected image is the result of PIL's conversion, except for 16-bit grayscale.
    """
    width, height = size
    if mode == "I;16":
        values = np.random.default_rng(width).integers(0, 2**16, (height, width), dtype=np.uint16)
        eight_bit = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return Image.fromarray(values), Image.fromarray(eight_bit).convert("RGB")
    if mode == "PA":  # saved as a palette with an alpha value for each color
        image = noise(*size).quantize(16)
        image.info["transparency"] = bytes(range(0, 256, 16))
        return image, image.convert("RGB")
    image = noise(*size).convert(mode)
    return image, image.convert("RGB")


def tiles_of(file: bytes, resize_mode: str) -> Pixels:
    """Return the tiles produced by a decoder process."""
    limits = {"max_pixels": 10**8, "max_side": 10**5, "max_scans": 64, "transparency": "drop"}
    grid = {"anyres": GRID, "hd": HD_GRID}.get(resize_mode, ())
    request: dict[str, Any] = {"side": SIDE, "fit": resize_mode, "background": MEAN_COLOR, "grid": grid}
    return np.asarray(preprocess({**request, **limits}, base64.b64encode(file))[0])


def saved(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    format = "JPEG" if image.mode == "CMYK" else "PNG"
    info = {str(name): value for name, value in image.info.items()}
    image.save(file, format, **info, **options)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # as the decoder process does
@settings(max_examples=30, deadline=None)
@given(SIZES, RESIZE_MODES, st.sampled_from(PIL_MODES))
@example((2, 2), "pad", "P")
@example((2, 2), "crop", "LA")
@example((2, 2), "squash", "CMYK")
@example((2, 2), "anyres", "RGB")
@example((4096, 300), "pad", "RGBA")
@example((4096, 300), "crop", "L")
@example((4096, 300), "squash", "RGBA")
@example((4096, 300), "anyres", "RGB")
@example((300, 4096), "hd", "I;16")
@example((700, 1), "pad", "RGB")
@example((1, 700), "crop", "P")
@example((5000, 3), "crop", "L")
@example((3, 5000), "anyres", "RGBA")
@example((5000, 1), "hd", "RGB")
def test_pixels_of_every_mode_and_size_equal_plain_pil_code(
    size: tuple[int, int], resize_mode: str, mode: str
) -> None:
    image, expected = in_mode(mode, size)
    file = saved(image)
    if mode == "CMYK":  # JPEG is lossy
        expected = Image.open(io.BytesIO(file)).convert("RGB")
    assert np.array_equal(tiles_of(file, resize_mode), reference(expected, resize_mode))


@settings(max_examples=15, deadline=None)
@given(SIZES, RESIZE_MODES, st.integers(1, 8))
def test_rotated_images_are_preprocessed_upright(
    size: tuple[int, int], resize_mode: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(noise(*size), exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    assert np.array_equal(tiles_of(file, resize_mode), reference(upright, resize_mode))


@settings(max_examples=15, deadline=None)
@given(SIZES)
@example((2, 2))
@example((4096, 300))
@example((300, 4096))
@example((SIDE, SIDE))
def test_anyres_tiles_equal_transformers_processor_bit_for_bit(size: tuple[int, int]) -> None:
    image = noise(*size)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=[[height, width] for width, height in GRID],
        do_rescale=False,
        do_normalize=False,
    )
    expected = processed(processor, image)
    tiles = resize(image, side=SIDE, mode="anyres", background=(0, 0, 0), grid=GRID)
    assert np.array_equal(np.asarray(tiles), np.concatenate(list(expected)))


@settings(max_examples=15, deadline=None)
@given(SIZES)
@example((2, 2))
@example((SIDE, SIDE))
def test_tiles_of_onevision_equal_transformers_processor_bit_for_bit(size: tuple[int, int]) -> None:
    image = noise(*size)
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=[[height, width] for width, height in GRID],
        image_mean=[0.5, 0.5, 0.5],
        do_rescale=False,
        do_normalize=False,
    )
    background = (127, 127, 127)
    single, several = processed(processor, [[image]]), processed(processor, [[image, image]])
    padded = resize(image, side=SIDE, mode="pad", background=background)
    split = resize(image, side=SIDE, mode="anyres", background=background, grid=GRID)
    assert np.array_equal(np.asarray(split), np.concatenate(list(single)))
    assert np.array_equal(np.asarray(padded), several[0])


@given(SIZES, st.sampled_from([GRID, HD_GRID]))
@example((16_384, 1), GRID)
@example((1, 16_384), GRID)
@settings(max_examples=20, deadline=None)
def test_worker_expects_the_number_of_tiles_that_the_server_creates(
    size: tuple[int, int], grid: tuple[tuple[int, int], ...]
) -> None:
    layout = ImageLayout(SIDE, 4, fit="anyres", grid=grid)
    tiles = resize(Image.new("RGB", size), side=SIDE, mode="anyres", background=(0, 0, 0), grid=grid)
    assert tiles.size == (SIDE, SIDE * layout.plan(*size).num_tiles)


@settings(max_examples=20, deadline=None)
@given(SIZES)
def test_server_and_worker_place_the_image_at_the_same_position(size: tuple[int, int]) -> None:
    canvas = best_resolution(size, GRID)
    inner = size_on_canvas(size, canvas)
    tiles = resize(Image.new("RGB", size, "white"), side=SIDE, mode="anyres", background=(0, 0, 0), grid=GRID)
    grid_tiles = np.asarray(tiles)[SIDE:].reshape(canvas[1] // SIDE, canvas[0] // SIDE, SIDE, SIDE, 3)
    whole = grid_tiles.transpose(0, 2, 1, 3, 4).reshape(canvas[1], canvas[0], 3)
    rows, columns = np.nonzero(whole[..., 0])
    assert (columns.min(), rows.min()) == ((canvas[0] - inner[0]) // 2, (canvas[1] - inner[1]) // 2)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == inner


@pytest.mark.parametrize("size", [(700, 1), (1, 700), (16_384, 1), (1, 16_384)])
@pytest.mark.parametrize("resize_mode", ["pad", "crop", "squash", "anyres", "hd"])
def test_decoder_process_accepts_extreme_aspect_ratios(
    resize_mode: ResizeMode, size: tuple[int, int]
) -> None:
    """The resized image in mode crop would have 1.8 billion pixels, so it must not be computed completely."""
    grid = {"anyres": GRID, "hd": HD_GRID}.get(resize_mode, ())
    spec = (
        ImageSpec(side=336, fit=resize_mode) if not grid else ImageSpec(side=SIDE, fit=resize_mode, grid=grid)
    )

    async def run() -> ImageTiles:
        pool = decoder_pool()
        await pool.start()
        try:
            return await pool.preprocess(
                base64.b64encode(saved(Image.new("RGB", size, "teal"))), spec, tenant="a"
            )
        finally:
            await pool.aclose()

    tiles = asyncio.run(run())
    expected = ImageLayout(SIDE, 4, fit="anyres", grid=grid).plan(*size).num_tiles if grid else 1
    assert (tiles.num_tiles, tiles.width, tiles.height) == (expected, *size)
    if resize_mode in ("crop", "squash"):
        assert tiles.pixels == bytes((0, 128, 128)) * 336 * 336


@pytest.mark.parametrize("resize_mode", ["anyres", "hd"])
def test_decoder_process_returns_all_tiles(resize_mode: ResizeMode) -> None:
    grid = GRID if resize_mode == "anyres" else HD_GRID
    spec = ImageSpec(side=SIDE, fit=resize_mode, tokens_per_tile=4, grid=grid)
    image = noise(100, 31)

    async def run() -> tuple[bytes, int]:
        pool = decoder_pool()
        await pool.start()
        try:
            tiles = await pool.preprocess(base64.b64encode(saved(image)), spec, tenant="a")
        finally:
            await pool.aclose()
        return tiles.pixels, tiles.num_tiles

    pixels, num_tiles = asyncio.run(run())
    expected = original_anyres(image, SIDE, spec.grid)
    assert num_tiles == expected.shape[0] // SIDE > 2
    assert pixels == expected.tobytes()
