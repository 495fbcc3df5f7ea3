"""Images crafted to crash the decoder, exhaust memory or cause an error message that reveals internals."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from tests.server.conftest import Stack
from tests.server.image_files import data_url, encoded, part, png_claiming, scene
from tests.server.images.test_image_requests import LEAKS
from tests.server.scripted_worker import MODEL

NUM_BROKEN = 1000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
VALID_FILES = {name: encoded(scene(64, 48), name) for name in FORMATS}


def broken(number: int) -> bytes:
    """Return an image with changed, removed or repeated bytes. The result depends only on ``number``."""
    rng = random.Random(number)
    raw = bytearray(VALID_FILES[FORMATS[number % len(FORMATS)]])
    for _ in range(rng.choice((1, 2, 5, 40))):
        at = rng.randrange(len(raw)) if rng.random() < 0.6 else rng.randrange(min(64, len(raw)))
        length = rng.choice((1, 1, 2, 4, 16))
        match rng.randrange(5):
            case 0:
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                raw[at : at + length] = rng.randbytes(length)
            case 2:
                raw[at : at + length] = b"\xff" * length
            case 3 if len(raw) > 64:
                del raw[at : at + length]
            case _:
                raw[at:at] = raw[at : at + length]
    if rng.random() < 0.1:  # combine the signature of one format with the body of another
        length = rng.choice((2, 4, 8, 16, 32))
        raw[:length] = VALID_FILES[rng.choice(FORMATS)][:length]
    return bytes(raw[: rng.randrange(1, len(raw))] if rng.random() < 0.2 else raw)


def in_a_chat(url: str) -> tuple[str, dict[str, Any]]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "look"}]
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}


def in_a_response(url: str) -> tuple[str, dict[str, Any]]:
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "look"}]
    return "/v1/responses", {"input": [{"role": "user", "content": content}]}


def in_a_message(url: str) -> tuple[str, dict[str, Any]]:
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "look"}]
    return "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": content}]}


def to_be_counted(url: str) -> tuple[str, dict[str, Any]]:
    return "/v1/messages/count_tokens", {"messages": in_a_message(url)[1]["messages"]}


def to_be_embedded(url: str) -> tuple[str, dict[str, Any]]:
    return "/v1/embeddings", {"input": {"type": "image_url", "image_url": {"url": url}}}


def in_tokens(url: str) -> tuple[str, dict[str, Any]]:
    return "/tokenize", in_a_chat(url)[1]


ROUTES = [in_a_chat, in_a_response, in_a_message, to_be_counted, to_be_embedded, in_tokens]


def test_no_broken_image_makes_an_error_reveal_internals(stack: Stack) -> None:
    """All routes are tested because each creates its own error responses."""
    statuses = Counter[tuple[str, int]]()
    for number in range(NUM_BROKEN):
        path, body = ROUTES[number // len(FORMATS) % len(ROUTES)](data_url(broken(number)))
        response = stack.http.post(path, json={"model": MODEL, **body})
        statuses[path, response.status_code] += 1
        assert response.status_code in (200, 400), (number, response.text)
        assert not LEAKS.search("".join(response.headers.values())), (number, response.headers)
        if response.status_code == 400:
            error = response.json()["error"]
            assert error.pop("doc") == f"docs/reference/errors.md#{error['code']}"
            assert error["code"] in ("invalid_image", "image_too_large"), (number, error)
            assert not LEAKS.search(json.dumps(error)), (number, error)
    assert stack.works()
    # Both outcomes must occur frequently. Otherwise, the images are damaged too little or too much.
    assert all(statuses[path, status] >= 10 for path, _ in statuses for status in (200, 400)), statuses
    assert len(statuses) == 2 * len(ROUTES)


def test_the_pattern_matches_a_message_of_pillow() -> None:
    assert LEAKS.search("cannot identify image file <_io.BytesIO object at 0x7f8a2c0b3d60>")


def webp_claiming(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x40\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + size + bytes(40)


def gif_claiming(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + encoded(scene(), "GIF")[10:]


def bmp_claiming(width: int, height: int) -> bytes:
    raw = bytearray(encoded(scene(), "BMP"))
    raw[18:26] = struct.pack("<ii", width, height)
    return bytes(raw)


def jpeg_claiming(width: int, height: int) -> bytes:
    raw = bytearray(encoded(scene(), "JPEG"))
    at = raw.index(b"\xff\xc0") + 5
    raw[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(raw)


def bombs() -> dict[str, bytes]:
    """Return a file per format, with dimensions that do not fit into memory."""
    return {
        "png": png_claiming(16_000, 16_000, rows=16_000),
        "png, one row": png_claiming(2_000_000_000, 1),
        "webp": webp_claiming(16_383, 16_383),
        "gif": gif_claiming(65_535, 65_535),
        "bmp": bmp_claiming(30_000, 30_000),
        "jpeg": jpeg_claiming(65_500, 65_500),
    }


def test_a_bomb_is_rejected_by_its_header_without_losing_a_decoder_process(
    own_stack: Callable[..., Stack],
) -> None:
    stack = own_stack()
    pool = stack.server.services.image_loader._pool
    before = pool.pids
    for name, bomb in bombs().items():
        response = stack.chat([part(bomb), {"type": "text", "text": "look"}])
        assert (response.status_code, response.json()["error"]["code"]) == (400, "image_too_large"), name
        assert pool.pids == before, name


def test_a_bomb_within_the_size_limit_cannot_exceed_the_decoders_memory(stack: Stack) -> None:
    """The 39 kB file contains 39 million pixels, which is within the size limit."""
    response = stack.chat([part(png_claiming(6_000, 6_500, rows=6_500)), {"type": "text", "text": "look"}])
    assert response.status_code in (200, 400)
    assert stack.works()


UNWANTED = {
    "fits": b"SIMPLE  =                    T" + b" " * 2850,
    "gd": b"\xff\xfe\xff\xff\xff\xff\x01\xff\xff\xff\xff" + bytes(64),
    "psd": b"8BPS\x00\x01" + bytes(64),
    "spider": struct.pack(">27f", *[1.0] * 27) + bytes(1024),
    "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64),
    "avif": b"\x00\x00\x00\x1cftypavif" + bytes(64),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "icon": encoded(scene(32, 32), "ICO"),
    "tga": encoded(scene(), "TGA"),
    "ppm": encoded(scene(), "PPM"),
}


@pytest.mark.parametrize("name", UNWANTED)
def test_unsupported_formats_are_not_opened(stack: Stack, name: str) -> None:
    response = stack.chat([part(UNWANTED[name]), {"type": "text", "text": "look"}])
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_image")
    assert "not an image in a supported format" in error["message"]


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 99), (1, 101), (65_535, 1), (1, 65_535), (52_800, 44)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA"])
def test_unusual_shapes_and_modes_are_accepted_or_rejected_and_the_next_request_works(
    stack: Stack, size: tuple[int, int], mode: str
) -> None:
    image = encoded(Image.new(mode, size))
    response = stack.chat([part(image), {"type": "text", "text": "look"}])
    assert response.status_code == (400 if max(size) > 16_384 else 200), response.text
    assert stack.works()


def test_only_the_first_frame_of_a_long_animation_is_decoded(stack: Stack) -> None:
    first = encoded(scene(), "GIF")
    header, frame = first[: first.index(b",")], first[first.index(b",") : -1]
    response = stack.chat([part(header + frame * 5_000 + b";"), {"type": "text", "text": "look"}])
    assert response.status_code == 200
    plain = stack.chat([part(first), {"type": "text", "text": "look"}])
    assert plain.status_code == 200
    animated, still = (assignment.job.images[0].digest for assignment in stack.worker.assignments)
    assert animated == still


def test_the_media_type_of_a_data_url_is_not_trusted(stack: Stack) -> None:
    content = [part(data_url(b"<script>alert(1)</script>", "image/svg+xml")), {"type": "text", "text": "x"}]
    response = stack.chat(content)
    assert response.status_code == 400
    assert "script" not in response.text
