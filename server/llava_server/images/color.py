"""Converts decoded images of any mode to 8-bit RGB.

- Transparent images are composited on white, as most viewers display them. With ``transparency="drop"``, the
  alpha channel is dropped, as the original LLaVA does. Pixels that are opaque are the same either way.
- Unsigned grayscale with 12 or 16 bits is scaled to 8 bits. PIL would clip most values to white.
- Grayscale with signed, 32-bit or floating-point values has no defined white. It is scaled so that the lowest
  value of the image is black and the highest is white, as scientific viewers display it.

All other modes are converted with ``Image.convert``, as in the original LLaVA.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Literal, cast

from PIL import Image, ImageChops, ImageFile

__all__ = ["Transparency", "scale_transparent_color", "to_rgb"]

Transparency = Literal["white", "drop"]

_WHITE = (255, 255, 255)
_STRAIGHT_MODES = {"La": "LA", "RGBa": "RGBA"}  # modes with premultiplied alpha, and the same without
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO = 0  # a value of _PHOTOMETRIC


def to_rgb(image: Image.Image, *, transparency: Transparency) -> Image.Image:
    """Convert a loaded image of any mode to RGB. Removes the transparent color from ``image.info``.

    Raises ValueError if a pixel is not a finite number or exceeds the range of Pillow.
    """
    if image.mode in _STRAIGHT_MODES:
        image = image.convert(_STRAIGHT_MODES[image.mode])
    alpha = _alpha(image) if transparency == "white" else None
    image.info.pop("transparency", None)  # convert() would try to convert it, too, and warn or fail
    opaque = _eight_bit_gray(image) if image.mode.startswith(("I", "F")) else image
    rgb = opaque if opaque.mode == "RGB" else opaque.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    canvas = Image.new("RGB", rgb.size, _WHITE)
    canvas.paste(rgb, (0, 0), alpha)
    return canvas


def scale_transparent_color(image: ImageFile.ImageFile) -> None:
    """Scale the transparent color of a PNG to the range of the decoded pixels. Call this before ``load``.

    Pillow scales grayscale with 2 or 4 bits up to 8 bits and keeps only the high byte of RGB with 16 bits,
    but does not change the transparent color (the tRNS chunk) accordingly.
    """
    color, raw_mode = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if raw_mode in ("L;2", "L;4"):
        if isinstance(color, int):
            image.info["transparency"] = color * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B" and isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in color)


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return the alpha channel (mode L, 0 is transparent), or None if the image has no transparency."""
    if image.mode in ("RGBA", "LA", "PA"):
        return image.getchannel("A")
    transparent = image.info.get("transparency")
    if transparent is None:
        return None
    if image.mode == "P":
        return image.point(_palette_alpha(transparent), "L")
    if isinstance(transparent, int):
        return _differs(image, transparent)
    bands = zip(image.split(), transparent, strict=True)
    return reduce(ImageChops.lighter, [_differs(band, value) for band, value in bands])


def _palette_alpha(transparent: int | bytes) -> list[int]:
    """Return the alpha of each palette index. ``transparent`` is an index or the alpha of the first ones."""
    if isinstance(transparent, int):
        return [0 if index == transparent else 255 for index in range(256)]
    return [*transparent[:256], *[255] * (256 - len(transparent))]


def _differs(band: Image.Image, value: int) -> Image.Image:
    """Return 255 for each pixel of a grayscale image that differs from ``value``, and 0 for the others."""
    is_wide = band.mode.startswith("I")
    table = [255] * (65536 if is_wide else 256)
    if 0 <= value < len(table):
        table[value] = 0
    return band.convert("I" if is_wide else "L").point(table, "L")


def _eight_bit_gray(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})  # only TIFF images have tags
    if image.mode.startswith("I;16"):
        bits = 12 if tags.get(_BITS_PER_SAMPLE) == (12,) else 16
        scale, offset = 255 / (2**bits - 1), 0.5
    else:
        scale, offset = _stretch(image)
    wide = image.convert("I") if image.mode == "I;16B" else image  # Pillow cannot scale big-endian pixels
    gray = wide.point(lambda value: value * scale + offset).convert("L")
    # Pillow inverts images in which 0 is white only if they have at most 8 bits.
    return ImageChops.invert(gray) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else gray


def _stretch(image: Image.Image) -> tuple[float, float]:
    """Return the scale and offset that map the lowest value to 0 and the highest to 255."""
    mean = image.convert("F").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    lowest, highest = cast(tuple[float, float], image.getextrema())
    is_unsigned = image.mode == "I" and getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,)) == (1,)
    if is_unsigned and lowest < 0:
        raise ValueError("The image contains a value above 2147483647, which Pillow cannot represent.")
    if not all(math.isfinite(value) for value in (cast(float, mean), lowest, highest)):
        raise ValueError("The image contains a pixel that is not a finite number.")
    scale = 255 / ((highest - lowest) or 1)
    return scale, 0.5 - lowest * scale
