"""The program of a decoder process, which decodes untrusted images in isolation.

The process has no environment variables and no open files except its standard streams. Its memory, and the
CPU time for each image, are limited. It cannot open files: RLIMIT_NOFILE prevents this, and if the kernel
supports seccomp, ``sandbox`` also blocks the system calls. It reads requests from stdin and writes responses
to stdout until stdin is closed, which also happens when the server exits. An image that crashes the process
does not affect other images.
"""

from __future__ import annotations

import base64
import io
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from PIL import Image, ImageFile, MpoImagePlugin, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from llava_server.images.color import Transparency, scale_transparent_color, to_rgb
from llava_server.images.data_url import DataEncoding, decode_body
from llava_server.images.image_processing import ResizeMode, apply_orientation, resize
from llava_server.images.jpeg_scans import num_scans
from llava_server.images.pipe_frames import read_frame, write_frame
from llava_server.images.sandbox import enter_sandbox

__all__ = ["FORMATS", "DecodeError", "main", "preprocess"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# preinit() skips these plugins. Some phones save JPEGs as MPO.
_LATE_PLUGINS = (MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
_TIFF_SIGNATURES = tuple(TiffImagePlugin.PREFIXES)
_ORIENTATION = 0x0112


class DecodeError(Exception):
    """The image cannot be decoded. ``reason`` is an identifier from this module.

    Pillow's messages are not used, because they may leak memory addresses.
    """

    def __init__(self, reason: str, **numbers: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.numbers = numbers


def preprocess(
    request: dict[str, Any], data: bytes, *, on_size: Callable[[int], None] = lambda _num_pixels: None
) -> tuple[Image.Image, int, int]:
    """Return the tiles of an image, and the width and height of the upright image.

    With the mode "rgb", the result is the resized image and its size.

    ``data`` is the data of a data: URL, encoded as stated in ``request["encoding"]`` (default: base64).
    ``on_size`` is called with the number of pixels before they are decoded. Raises DecodeError.
    """
    image = _open(_decode(data, cast(DataEncoding, request.get("encoding", "base64"))), request)
    on_size(image.width * image.height)
    try:
        scale_transparent_color(image)
        image.load()  # loads only the first frame of an animation or the first page of a TIFF
        orientation = _orientation(image)  # 1 for a TIFF, because load() has already made it upright
        rgb = to_rgb(image, transparency=cast(Transparency, request["transparency"]))
        upright = apply_orientation(rgb, orientation)
    except MemoryError as error:
        raise DecodeError("out_of_memory") from error
    except Exception as error:  # Pillow's decoders can raise any type of exception
        raise DecodeError("damaged") from error
    tiles = resize(
        upright,
        side=request["side"],
        mode=cast(ResizeMode, request["fit"]),
        background=tuple(request["background"]),
        grid=[(width, height) for width, height in request.get("grid", ())],
    )
    return (tiles, *(tiles.size if request["fit"] == "rgb" else upright.size))


def main() -> None:
    """Serve requests until stdin is closed. The first frame reports that the process is ready."""
    sandbox_error = _restrict_process(memory_bytes=int(sys.argv[2]))
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    write_frame(stdout, {"ready": True, "sandbox_error": sandbox_error})
    while (frame := read_frame(stdin)) is not None:
        _respond(stdout, *frame)


def _respond(stdout: BinaryIO, request: dict[str, Any], data: bytes) -> None:
    def on_size(num_pixels: int) -> None:
        _limit_cpu_time(_limit_cpu_time(0) + request["cpu_s_per_mp"] * num_pixels / 1e6)

    _limit_cpu_time(request["cpu_base_s"])
    try:
        tiles, width, height = preprocess(request, data, on_size=on_size)
    except DecodeError as error:
        write_frame(stdout, {"error": error.reason, **error.numbers})
    except MemoryError:
        write_frame(stdout, {"error": "out_of_memory"})
    else:
        write_frame(stdout, {"width": width, "height": height}, tiles.tobytes())
    _limit_cpu_time(0)


def _decode(data: bytes, encoding: DataEncoding) -> bytes:
    try:
        return decode_body(data, encoding)
    except ValueError as error:
        raise DecodeError("bad_base64") from error


def _open(file: bytes, request: dict[str, Any]) -> ImageFile.ImageFile:
    """Read the image header and check the size before Pillow allocates memory for the pixels."""
    if num_scans(file, limit=request["max_scans"]) > request["max_scans"]:
        raise DecodeError("too_many_scans")
    if (size := _webp_size(file)) is not None:
        _check_size(*size, request)  # Pillow's WEBP reader allocates the canvas when it opens the file
    try:
        image = Image.open(io.BytesIO(file), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DecodeError("damaged" if _has_known_signature(file) else "not_an_image") from error
    except MemoryError as error:
        raise DecodeError("out_of_memory") from error
    except Exception as error:  # Pillow's decoders can raise any type of exception
        raise DecodeError("damaged") from error
    _check_size(image.width, image.height, request)
    return image


def _check_size(width: int, height: int, request: dict[str, Any]) -> None:
    if width * height > request["max_pixels"] or max(width, height) > request["max_side"]:
        raise DecodeError("too_large", width=width, height=height)


def _webp_size(file: bytes) -> tuple[int, int] | None:
    """Return the image size from a WEBP header (RFC 9649), or None if the header is missing or truncated."""
    if file[:4] != b"RIFF" or file[8:12] != b"WEBP" or len(file) < 30:
        return None
    if file[12:16] == b"VP8X":
        return int.from_bytes(file[24:27], "little") + 1, int.from_bytes(file[27:30], "little") + 1
    if file[12:16] == b"VP8L":
        bits = int.from_bytes(file[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if file[12:16] == b"VP8 ":
        return int.from_bytes(file[26:28], "little") & 0x3FFF, int.from_bytes(file[28:30], "little") & 0x3FFF
    return None


def _has_known_signature(file: bytes) -> bool:
    """Return whether the file starts with the signature of a supported format."""
    signatures = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", *_TIFF_SIGNATURES)
    return file.startswith(signatures) or file[8:12] == b"WEBP"


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if the EXIF block is missing or invalid."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the EXIF parser can raise any type of exception
        return 1


def _restrict_process(*, memory_bytes: int) -> str | None:
    """Set the resource limits of this process and enter the sandbox.

    Return None on success, or the reason why the sandbox is unavailable.
    """
    Image.MAX_IMAGE_PIXELS = None  # _check_size checks the size in the header instead
    warnings.simplefilter("ignore")
    _load_plugins()
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # stdin, stdout, stderr
    return enter_sandbox()


def _load_plugins() -> None:
    """Preprocess one image of each format.

    This makes Pillow import all modules that it needs before file access is blocked.
    """
    Image.preinit()
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    limits = {"max_pixels": 64, "max_side": 8, "max_scans": 64}
    request = {"side": 4, "fit": "pad", "background": (0, 0, 0), "transparency": "white", **limits}
    modes = {"JPEG": ("RGB",), "MPO": ("RGB",), "TIFF": ("RGB", "L", "P", "F", "LAB")}
    for name in (*FORMATS, "MPO"):
        for mode in modes.get(name, ("RGB", "L", "P")):
            for is_animated in (False, name not in ("JPEG", "BMP")):
                file, image = io.BytesIO(), Image.new("L", (8, 8), 99)
                image = Image.merge("LAB", [image] * 3) if mode == "LAB" else image.convert(mode)
                frames = {"save_all": True, "append_images": [image.rotate(90)]} if is_animated else {}
                options = {"compression": "tiff_lzw"} if name == "TIFF" and is_animated else {}
                image.save(file, name, exif=exif.tobytes(), **frames, **options)
                preprocess(request, base64.b64encode(file.getvalue()))


def _limit_cpu_time(seconds: float) -> float:
    """Terminate this process with SIGPROF after this amount of CPU time, or remove the limit if it is 0.

    Return the remaining time of the previous limit, in seconds. In contrast to RLIMIT_CPU, a limit can be a
    fraction of a second.
    """
    remaining_s, _ = signal.setitimer(signal.ITIMER_PROF, seconds)
    return remaining_s
