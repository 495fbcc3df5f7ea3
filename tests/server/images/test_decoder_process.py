"""Tests that call the functions of the decoder process directly, and tests of the frames on its pipe."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from llava_server.images.decoder_process import FORMATS, DecodeError, preprocess
from llava_server.images.pipe_frames import BrokenFrame, read_frame, write_frame

from tests.server.image_files import encoded, png_claiming, scene

REQUEST: dict[str, Any] = {
    "side": 28,
    "fit": "pad",
    "background": [0, 0, 0],
    "max_pixels": 1_000_000,
    "max_side": 2_000,
    "max_scans": 64,
    "transparency": "white",
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_decoded_in_every_mode(format: str) -> None:
    for mode in ("pad", "crop"):
        tile, width, height = preprocess({**REQUEST, "fit": mode}, base64.b64encode(encoded(scene(), format)))
        assert (tile.size, tile.mode, width, height) == ((28, 28), "RGB", 40, 20)


def webp(kind: bytes, header: bytes) -> bytes:
    body = b"WEBP" + kind + b"\x20\x00\x00\x00" + header.ljust(32, b"\x00")
    return b"RIFF" + len(body).to_bytes(4, "little") + body


REASONS = {
    "bad base64": (b"***", "bad_base64"),
    "text": (base64.b64encode(b"hello"), "not_an_image"),
    "truncated": (base64.b64encode(encoded(scene())[:80]), "damaged"),
    "png header": (base64.b64encode(b"\x89PNG\r\n\x1a\n"), "damaged"),
    "too many pixels": (base64.b64encode(png_claiming(1_001, 1_000)), "too_large"),
    "too long": (base64.b64encode(png_claiming(2_001, 100)), "too_large"),
    "webp, extended": (base64.b64encode(webp(b"VP8X", bytes(4) + b"\xff" * 6)), "too_large"),
    "webp, lossless": (base64.b64encode(webp(b"VP8L", b"\x2f\xff\xff\xff\x0f")), "too_large"),
    "webp, lossy": (base64.b64encode(webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a\xff\x3f\xff\x3f")), "too_large"),
    "webp, unknown": (base64.b64encode(webp(b"XXXX", b"")), "damaged"),
}


@pytest.mark.parametrize("name", REASONS)
def test_invalid_image_raises_an_error_with_a_reason(name: str) -> None:
    text, reason = REASONS[name]
    with pytest.raises(DecodeError) as caught:
        preprocess(REQUEST, text)
    assert caught.value.reason == reason


def test_frames_round_trip_through_a_pipe() -> None:
    pipe = io.BytesIO()
    write_frame(pipe, {"a": 1}, b"body")
    write_frame(pipe, {"b": 2})
    pipe.seek(0)
    assert read_frame(pipe) == ({"a": 1}, b"body")
    assert read_frame(pipe) == ({"b": 2}, b"")
    assert read_frame(pipe) is None


@pytest.mark.parametrize(
    "raw",
    [b"\x00", b"\x00\x00\x00\x02\x00\x00\x00\x05{}", b"\xff" * 8, b"\x00\x00\x00\x02\x00\x00\x00\x00xx"],
)
def test_broken_frame_raises_an_error(raw: bytes) -> None:
    with pytest.raises(BrokenFrame):
        read_frame(io.BytesIO(raw))
