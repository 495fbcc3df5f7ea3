"""A picture child: a process that does nothing but open foreign image bytes, with nothing to steal.

It has no environment, no file but its two pipes, bounded memory and processor time, and cannot open
anything: the limit of open files is lowered to what is open already, and ``sandbox`` takes the system calls
away where the kernel can. It reads orders on stdin and answers
on stdout until stdin ends, which is also what happens when the server dies. A picture that kills it costs
that picture.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import resource
import sys
import warnings
from typing import Any, BinaryIO, cast

from PIL import Image, MpoImagePlugin, UnidentifiedImageError, WebPImagePlugin

from llava_server.images.pipe_frames import read_frame, write_frame
from llava_server.images.resize import Fit, fit, to_rgb, upright
from llava_server.images.sandbox import confine

__all__ = ["FORMATS", "PictureError", "main", "shape"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_LATE_PLUGINS = (MpoImagePlugin, WebPImagePlugin)  # preinit() leaves them out; some phones' JPEGs are MPO
_ORIENTATION = 0x0112


class PictureError(Exception):
    """A picture that is refused; ``reason`` is a word of ours, never Pillow's text: those show addresses."""

    def __init__(self, reason: str, **numbers: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.numbers = numbers


def shape(order: dict[str, Any], text: bytes) -> tuple[Image.Image, int, int]:
    """The tiles for one order, and the upright original's width and height. Raises PictureError."""
    image = _open(_from_base64(text), order)
    try:
        image.load()  # only the first frame of an animation
        orientation = _orientation(image)
        picture = upright(to_rgb(image), orientation)
    except MemoryError as error:
        raise PictureError("out_of_memory") from error
    except Exception as error:  # Pillow's decoders raise anything; the refusal is the answer
        raise PictureError("damaged") from error
    tiles = fit(
        picture,
        side=order["side"],
        how=cast(Fit, order["fit"]),
        background=tuple(order["background"]),
        grid=[(width, height) for width, height in order.get("grid", ())],
    )
    return tiles, picture.width, picture.height


def main() -> None:
    """Answers orders until stdin ends. The first frame out says that the child is ready."""
    weakness = _confine(memory_bytes=int(sys.argv[2]))
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    write_frame(stdout, {"ready": True, "weakness": weakness})
    while (frame := read_frame(stdin)) is not None:
        _answer(stdout, *frame)


def _answer(stdout: BinaryIO, order: dict[str, Any], text: bytes) -> None:
    _allow_cpu(order["cpu_s"])
    try:
        tiles, width, height = shape(order, text)
    except PictureError as error:
        write_frame(stdout, {"refused": error.reason, **error.numbers})
    except MemoryError:
        write_frame(stdout, {"refused": "out_of_memory"})
    else:
        write_frame(stdout, {"width": width, "height": height}, tiles.tobytes())


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise PictureError("bad_base64") from error


def _open(raw: bytes, order: dict[str, Any]) -> Image.Image:
    """Reads the header only and refuses by it, before any pixel is allocated."""
    if (size := _webp_size(raw)) is not None:
        _check_size(*size, order)  # Pillow's WEBP reader allocates the canvas when it opens the file
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise PictureError("damaged" if _looks_known(raw) else "not_an_image") from error
    except MemoryError as error:
        raise PictureError("out_of_memory") from error
    except Exception as error:  # as above: a broken header ends in whatever the plugin stumbled over
        raise PictureError("damaged") from error
    _check_size(image.width, image.height, order)
    return image


def _check_size(width: int, height: int, order: dict[str, Any]) -> None:
    if width * height > order["max_pixels"] or max(width, height) > order["max_side"]:
        raise PictureError("too_large", width=width, height=height)
    if max(width, height) > order["max_ratio"] * min(width, height):
        raise PictureError("too_narrow", width=width, height=height)


def _webp_size(raw: bytes) -> tuple[int, int] | None:
    """Width and height from a WEBP header (RFC 9649), None if it is none or not complete."""
    if raw[:4] != b"RIFF" or raw[8:12] != b"WEBP" or len(raw) < 30:
        return None
    if raw[12:16] == b"VP8X":
        return int.from_bytes(raw[24:27], "little") + 1, int.from_bytes(raw[27:30], "little") + 1
    if raw[12:16] == b"VP8L":
        bits = int.from_bytes(raw[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if raw[12:16] == b"VP8 ":
        return int.from_bytes(raw[26:28], "little") & 0x3FFF, int.from_bytes(raw[28:30], "little") & 0x3FFF
    return None


def _looks_known(raw: bytes) -> bool:
    """Whether the first bytes name a format that we take, so that "damaged" is the truer word."""
    return raw.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM")) or raw[8:12] == b"WEBP"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, "as it is", if the EXIF block is absent or broken: it is not the picture."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a foreign parser over foreign bytes; the picture itself is sound
        return 1


def _confine(*, memory_bytes: int) -> str | None:
    """None, or what could not be taken away."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked on the header
    warnings.simplefilter("ignore")
    _rehearse()
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # stdin, stdout, stderr are open; nothing more ever is
    return confine()


def _rehearse() -> None:
    """One picture of every kind: what Pillow imports at first use, it must import now."""
    Image.preinit()
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    limits = {"max_pixels": 64, "max_side": 8, "max_ratio": 1}
    order = {"side": 4, "fit": "pad", "background": (0, 0, 0), **limits}
    for name in (*FORMATS, "MPO"):
        for mode in ("RGB",) if name in ("JPEG", "MPO") else ("RGB", "L", "P"):
            for is_animated in (False, name not in ("JPEG", "BMP")):
                file, picture = io.BytesIO(), Image.new("RGB", (8, 8), "teal").convert(mode)
                frames = {"save_all": True, "append_images": [picture.rotate(90)]} if is_animated else {}
                picture.save(file, name, exif=exif.tobytes(), **frames)
                shape(order, base64.b64encode(file.getvalue()))


def _allow_cpu(seconds: float) -> None:
    """Gives the coming order its own processor time: the limit counts from the start of the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
