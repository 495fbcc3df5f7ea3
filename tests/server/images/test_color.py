"""Images of every mode are converted to RGB. Transparency is composited on white or dropped."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL
import pytest
from llava_server.images.color import Transparency, to_rgb
from llava_server.images.decoder_process import preprocess
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.server.image_files import encoded
from tests.server.images.test_image_processing import Pixels, noise

SIZE = 16
# TIFF's tag 338 (ExtraSamples), its type, its number of values and its value
UNASSOCIATED_ALPHA = struct.pack("<HHIH", 338, 3, 1, 2)
ASSOCIATED_ALPHA = struct.pack("<HHIH", 338, 3, 1, 1)  # the colors are premultiplied


def decoded(file: bytes, transparency: Transparency = "white") -> Pixels:
    """Return the pixels that a decoder process computes for a square image of ``SIZE`` pixels."""
    limits = {"max_pixels": SIZE * SIZE, "max_side": SIZE, "max_scans": 64, "background": (0, 0, 0)}
    request = {"side": SIZE, "fit": "squash", "transparency": transparency, **limits}
    return np.asarray(preprocess(request, base64.b64encode(file))[0])


def png(bits: int, color_type: int, rows: list[bytes], transparent: bytes = b"") -> bytes:
    """Return a PNG with a tRNS chunk. ``rows`` are the packed samples."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", SIZE, len(rows), bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"")
    body += chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def on_white(rgb: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    """Composite with exact arithmetic, rounded to nearest."""
    alpha = alpha.astype(np.float64)[..., None] / 255
    return np.floor(rgb * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


RGB = np.asarray(noise(SIZE, SIZE))
GRAY = np.asarray(noise(SIZE, SIZE).convert("L"))
GRAY_RGB = np.stack([GRAY] * 3, axis=-1)
ALPHA = np.tile(np.arange(0, 256, 17, dtype=np.uint8), (SIZE, 1))
HALVES = np.where(np.arange(SIZE) < SIZE // 2, 0, 255).astype(np.uint8) * np.ones((SIZE, 1), np.uint8)
RGBA = Image.fromarray(np.dstack([RGB, ALPHA]))
HALF_RGBA = Image.fromarray(np.dstack([RGB, HALVES]))
LA = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])
PALETTE = noise(SIZE, SIZE).quantize(16)
INDEX = np.asarray(PALETTE)
PALETTE_RGB = np.asarray(PALETTE.convert("RGB"))


def frame_of(format: str, **options: Any) -> bytes:
    return encoded(HALF_RGBA, format, save_all=True, append_images=[noise(SIZE, SIZE)], **options)


def gray_with_transparent_1(bits: int) -> bytes:
    """Return a PNG whose rows count up from 0. The sample 1 is transparent."""
    samples = [f"{index % 2**bits:0{bits}b}" for index in range(SIZE)]
    row = int("".join(samples), 2).to_bytes(SIZE * bits // 8, "big")
    return png(bits, 0, [row] * SIZE, b"\0\1")


RAMP = np.arange(SIZE)
RAMP_RGB = np.tile(RAMP[:, None].astype(np.uint8), (SIZE, 1, 3))
ONE_TRANSPARENT = np.tile(np.where(RAMP == 1, 0, 255), (SIZE, 1))
PALETTE_ALPHA = PALETTE.convert("PA")
PALETTE_ALPHA.putalpha(Image.fromarray(ALPHA))

# Files, the colors of their pixels, and the alpha of their pixels.
TRANSPARENT: dict[str, tuple[bytes, NDArray[Any], NDArray[Any]]] = {
    "RGBA": (encoded(RGBA), RGB, ALPHA),
    "LA": (encoded(LA), GRAY_RGB, ALPHA),
    "palette, alpha per color": (
        encoded(PALETTE, transparency=bytes(range(0, 256, 16))),
        PALETTE_RGB,
        INDEX * 16,
    ),
    "palette, fewer alphas than colors": (
        encoded(PALETTE, transparency=b"\0\x80"),
        PALETTE_RGB,
        np.select([INDEX == 0, INDEX == 1], [0, 128], 255),
    ),
    "palette, transparent index": (
        encoded(PALETTE, transparency=5),
        PALETTE_RGB,
        np.where(INDEX == 5, 0, 255),
    ),
    "gif": (encoded(PALETTE, "GIF", transparency=5), PALETTE_RGB, np.where(INDEX == 5, 0, 255)),
    "animated gif": (
        encoded(PALETTE, "GIF", transparency=5, save_all=True, append_images=[PALETTE.rotate(90)]),
        PALETTE_RGB,
        np.where(INDEX == 5, 0, 255),
    ),
    "RGB, transparent color": (
        encoded(Image.fromarray(RGB), transparency=tuple(RGB[3, 4].tolist())),
        RGB,
        np.where((RGB[3, 4] == RGB).all(-1), 0, 255),
    ),
    "gray, transparent color": (
        encoded(Image.fromarray(GRAY), transparency=int(GRAY[3, 4])),
        GRAY_RGB,
        np.where(GRAY[3, 4] == GRAY, 0, 255),
    ),
    "1-bit gray, transparent color": (
        png(1, 0, [b"\x55\x55"] * SIZE, b"\0\0"),
        RAMP_RGB % 2 * 255,
        np.tile(RAMP % 2 * 255, (SIZE, 1)),
    ),
    "2-bit gray, transparent color": (
        gray_with_transparent_1(2),
        RAMP_RGB % 4 * 85,
        np.tile(np.where(RAMP % 4 == 1, 0, 255), (SIZE, 1)),
    ),
    "4-bit gray, transparent color": (gray_with_transparent_1(4), RAMP_RGB * 17, ONE_TRANSPARENT),
    "16-bit gray, transparent color": (
        png(16, 0, [(RAMP * 257).astype(">u2").tobytes()] * SIZE, struct.pack(">H", 257)),
        RAMP_RGB,
        ONE_TRANSPARENT,
    ),
    "16-bit gray, similar to the transparent color": (
        png(16, 0, [(RAMP * 257).astype(">u2").tobytes()] * SIZE, struct.pack(">H", 257 + 1)),
        RAMP_RGB,
        np.full((SIZE, SIZE), 255),
    ),
    "16-bit gray with alpha": (
        png(16, 4, [np.stack([RAMP * 257, RAMP * 4369], -1).astype(">u2").tobytes()] * SIZE),
        RAMP_RGB,
        np.tile(RAMP * 17, (SIZE, 1)),
    ),
    "16-bit RGB, transparent color": (
        png(
            16,
            2,
            [np.repeat(RAMP * 4369, 3).astype(">u2").tobytes()] * SIZE,
            struct.pack(">3H", *[4369] * 3),
        ),
        RAMP_RGB * 17,
        ONE_TRANSPARENT,
    ),
    "webp": (encoded(RGBA, "WEBP", lossless=True, exact=True), RGB, ALPHA),
    "animated webp": (frame_of("WEBP", lossless=True, exact=True), RGB, HALVES),
    "animated png": (frame_of("PNG"), RGB, HALVES),
    "tiff": (encoded(RGBA, "TIFF"), RGB, ALPHA),
    "compressed tiff": (encoded(RGBA, "TIFF", compression="tiff_lzw"), RGB, ALPHA),
    "gray tiff": (encoded(LA, "TIFF"), GRAY_RGB, ALPHA),
    "palette tiff": (encoded(PALETTE_ALPHA, "TIFF"), PALETTE_RGB, ALPHA),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_image_is_composited_on_white(name: str) -> None:
    file, rgb, alpha = TRANSPARENT[name]
    actual = decoded(file)
    assert np.abs(actual.astype(int) - on_white(rgb, alpha)).max() <= 1
    assert np.array_equal(actual[alpha == 255], rgb[alpha == 255])
    assert (actual[alpha == 0] == 255).all()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", [name for name in TRANSPARENT if "16-bit gray," not in name])
def test_transparency_can_be_dropped_as_in_the_original_bit_for_bit(name: str) -> None:
    file = TRANSPARENT[name][0]
    original = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    assert np.array_equal(decoded(file, "drop"), original)
    is_opaque = (TRANSPARENT[name][2] == 255).all()
    assert np.array_equal(decoded(file, "white"), original) == is_opaque


@pytest.mark.parametrize(
    "mode",
    [
        "RGBA",
        pytest.param("LA", marks=pytest.mark.skipif(PIL.__version__ < "13", reason="requires Pillow 13")),
    ],
)
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_tiff_with_premultiplied_alpha_is_composited_on_white(mode: str, compression: str) -> None:
    straight = RGBA if mode == "RGBA" else LA
    premultiplied = Image.frombytes(mode, straight.size, straight.convert(mode.replace("A", "a")).tobytes())
    file = encoded(premultiplied, "TIFF", compression=compression)
    file = file.replace(UNASSOCIATED_ALPHA, ASSOCIATED_ALPHA)
    assert ASSOCIATED_ALPHA in file
    expected = on_white(RGB if mode == "RGBA" else GRAY_RGB, ALPHA)
    assert np.abs(decoded(file).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("transparency", ["white", "drop"])
def test_opaque_images_are_converted_as_by_pil(mode: str, transparency: Transparency) -> None:
    image = noise(20, 10).convert(mode)
    assert np.array_equal(
        np.asarray(to_rgb(image, transparency=transparency)), np.asarray(image.convert("RGB"))
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_transparent_image_with_an_orientation_is_composited_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(RGBA, exif=exif.tobytes())))))
    expected = on_white(upright[..., :3], upright[..., 3])
    for format in ("PNG", "TIFF"):
        actual = decoded(encoded(RGBA, format, exif=exif.tobytes()))
        assert np.abs(actual.astype(int) - expected).max() <= 1


def test_sixteen_bit_gray_is_scaled_and_not_clipped_to_white() -> None:
    image = Image.fromarray(np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16))
    assert image.mode == "I;16"
    assert np.asarray(to_rgb(image, transparency="white"))[0, :, 0].tolist() == [0, 1, 128, 255]
