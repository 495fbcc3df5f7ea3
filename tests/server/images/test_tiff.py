"""TIFF files are decoded in the sandbox. Broken files end in an error and do not affect other images."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import struct
from collections import Counter
from typing import Any

import numpy as np
import PIL
import pytest
from llava_server.images.decoder_pool import ImageTiles
from llava_server.images.decoder_process import DecodeError, preprocess
from llava_server.images.errors import ImageError
from llava_wire.messages.heartbeat import ImageSpec
from numpy.typing import NDArray
from PIL import Image

from tests.server.image_files import encoded, scene
from tests.server.image_slots import decoder_pool
from tests.server.images.test_color import decoded
from tests.server.images.test_image_processing import Pixels, noise

SIDE = 16
SPEC = ImageSpec(side=SIDE, fit="squash")
IMAGE = noise(SIDE, SIDE)
RAMP = np.tile(np.linspace(0, 1, SIDE, dtype=np.float32), (SIDE, 1))
GRAY_RAMP = np.round(RAMP * 255).astype(int)
WIDTH, BITS, PHOTOMETRIC = 256, 258, 262  # tags


def tiff(image: Image.Image, **options: Any) -> bytes:
    return encoded(image, "TIFF", **options)


def in_mode(mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.merge("LAB", [IMAGE.convert("L"), *[Image.new("L", IMAGE.size, 128)] * 2])
    return IMAGE.convert(mode)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"]
COMPRESSIONS = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "jpeg", "group4"]
FILES = {f"{mode}, raw": tiff(in_mode(mode)) for mode in MODES}
FILES |= {f"RGB, {name}": tiff(IMAGE, compression=name) for name in COMPRESSIONS[:-1]}
FILES |= {f"1, {name}": tiff(in_mode("1"), compression=name) for name in ("group3", "group4", "tiff_ccitt")}
FILES |= {f"{mode}, lzw": tiff(in_mode(mode), compression="tiff_lzw") for mode in MODES if mode != "YCbCr"}
FILES["big-endian"] = tiff(Image.fromarray((RAMP * 65535).astype(">u2")))
FILES["big TIFF"] = tiff(IMAGE, big_tiff=True)
FILES["float"] = tiff(Image.fromarray(RAMP), compression="tiff_adobe_deflate")


def in_pool(*files: bytes) -> list[ImageTiles | ImageError]:
    """Decode files one after another in one sandboxed process. Return the tiles or the error of each."""

    async def run() -> list[ImageTiles | ImageError]:
        pool = decoder_pool()
        await pool.start()
        results: list[ImageTiles | ImageError] = []
        try:
            for file in files:
                try:
                    results.append(await pool.preprocess(base64.b64encode(file), SPEC, tenant="a"))
                except ImageError as error:  # noqa: PERF203
                    results.append(error)
        finally:
            await pool.aclose()
        return results

    return asyncio.run(run())


def test_every_mode_and_compression_is_decoded_in_the_sandbox() -> None:
    results = dict(zip(FILES, in_pool(*FILES.values()), strict=True))
    if PIL.__version__ < "13":
        results.pop("YCbCr, raw")
    errors = {name: str(result) for name, result in results.items() if isinstance(result, ImageError)}
    assert not errors
    for name, result in results.items():
        assert isinstance(result, ImageTiles)
        if name not in ("big-endian", "float"):
            image = Image.open(io.BytesIO(FILES[name]))
            if image.mode not in ("LA", "RGBA"):
                assert result.pixels == image.convert("RGB").tobytes(), name


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_exactly_once(compression: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tiff(scene(), exif=exif, compression=compression)
    upright = encoded(scene(), exif=exif.tobytes())
    request = {"side": SIDE, "fit": "pad", "background": (0, 0, 0), "transparency": "white"}
    request |= {"max_pixels": 800, "max_side": 40, "max_scans": 64}
    (tile, *size), (expected, *expected_size) = (
        preprocess(request, base64.b64encode(f)) for f in (file, upright)
    )
    assert size == expected_size == ([20, 40] if orientation > 4 else [40, 20])
    assert tile.tobytes() == expected.tobytes()


def gray(pixels: NDArray[Any]) -> Pixels:
    return decoded(tiff(Image.fromarray(pixels)))[..., 0]


@pytest.mark.parametrize("lowest", [-3.5, 0.0, 1e6])
@pytest.mark.parametrize("dtype", ["<f4", "<i4", "<u2", ">u2"])
def test_wide_gray_values_are_scaled(dtype: str, lowest: float) -> None:
    if dtype.endswith("u2"):
        pixels = (RAMP * 65535).astype(dtype)
    else:
        pixels = (RAMP * 1e5 + lowest).astype(dtype)
    assert np.abs(gray(pixels).astype(int) - GRAY_RAMP).max() <= 1


def test_a_constant_float_image_is_black() -> None:
    assert not gray(np.full((SIDE, SIDE), 7.5, np.float32)).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_rejected(value: float) -> None:
    pixels = RAMP.copy()
    pixels[5, 5] = value
    with pytest.raises(DecodeError, match="damaged"):
        gray(pixels)


def test_unsigned_values_that_pillow_cannot_represent_are_rejected() -> None:
    pixels = (RAMP * 2e9).astype("<i4")
    file = tiff(Image.fromarray(pixels)).replace(pixels[0, -1].tobytes(), b"\xff\xff\xff\xff")
    sample_format = struct.pack("<HHIHH", 339, 3, 1, 2, 0)
    assert decoded(file) is not None
    assert sample_format in file
    with pytest.raises(DecodeError, match="damaged"):
        decoded(file.replace(sample_format, struct.pack("<HHIHH", 339, 3, 1, 1, 0)))


def patched(file: bytes, tag: int, value: int) -> bytes:
    """Change the value of a tag in a little-endian file."""
    raw = bytearray(file)
    directory = int.from_bytes(raw[4:8], "little")
    for at in range(
        directory + 2, directory + 2 + 12 * int.from_bytes(raw[directory : directory + 2], "little"), 12
    ):
        if int.from_bytes(raw[at : at + 2], "little") == tag:
            size = 2 if raw[at + 2] == 3 else 4
            raw[at + 8 : at + 8 + size] = value.to_bytes(size, "little")
            return bytes(raw)
    raise AssertionError(f"The file has no tag {tag}.")


def test_sixteen_bit_gray_in_which_zero_is_white_is_inverted() -> None:
    file = patched(tiff(Image.fromarray((RAMP * 65535).astype("<u2"))), PHOTOMETRIC, 0)
    assert np.abs(decoded(file)[..., 0].astype(int) - (255 - GRAY_RAMP)).max() <= 1


def test_twelve_bit_gray_is_scaled() -> None:
    values = "".join(f"{round(value * 4095):012b}" for value in RAMP[0])
    row = np.frombuffer(int(values, 2).to_bytes(SIDE * 12 // 8, "big"), np.uint8)
    file = patched(patched(tiff(Image.fromarray(np.tile(row, (SIDE, 1)))), WIDTH, SIDE), BITS, 12)
    assert np.abs(decoded(file)[..., 0].astype(int) - GRAY_RAMP).max() <= 1


def test_the_size_is_checked_before_pixels_are_decoded() -> None:
    for file in (patched(tiff(IMAGE, compression=name), WIDTH, 60_000) for name in ("raw", "tiff_lzw")):
        (result,) = in_pool(file)
        assert isinstance(result, ImageError)
        assert (result.code, "60000 x 16 pixels" in result.message) == ("image_too_large", True)


def test_unsupported_pixel_formats_are_reported() -> None:
    (result,) = in_pool(patched(tiff(IMAGE.convert("L")), BITS, 7))
    assert isinstance(result, ImageError)
    assert "pixel format or compression is not supported" in result.message


def broken(number: int) -> bytes:
    """Return a damaged file. Most changes are in the header and in the directory at its end."""
    rng = random.Random(number)
    raw = bytearray(list(FILES.values())[number % len(FILES)])
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.choice((rng.randrange(len(raw)), rng.randrange(min(250, len(raw)))))
        raw[at : at + 2] = rng.choice((rng.randbytes(2), b"\xff\xff", b"\0\0"))
    return bytes(raw[: rng.randrange(8, len(raw))] if rng.random() < 0.3 else raw)


def test_broken_files_end_in_an_error_and_the_pool_keeps_working() -> None:
    files = [broken(number) for number in range(600)]
    results = in_pool(*files, FILES["RGB, jpeg"])
    outcomes = Counter(r.code if isinstance(r, ImageError) else "decoded" for r in results)
    assert isinstance(results[-1], ImageTiles)
    assert outcomes.keys() <= {"decoded", "invalid_image", "image_too_large"}
    assert min(outcomes["decoded"], outcomes["invalid_image"]) > 50, outcomes
