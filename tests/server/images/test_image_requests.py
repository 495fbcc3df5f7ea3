"""Unusual images in requests are preprocessed correctly. Broken images are rejected with a clear error."""

from __future__ import annotations

import base64
import re

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.server.conftest import Stack, text_of
from tests.server.image_files import data_url, encoded, part, png_claiming, scene
from tests.server.images.test_image_processing import Pixels, original_pad
from tests.server.scripted_worker import SPEC

LEAKS = re.compile(r"0x[0-9a-f]{6,}|Traceback|/[a-z]+/[a-z]+|PIL|BytesIO")


def ask(stack: Stack, *images: bytes | str) -> httpx2.Response:
    return stack.chat([*(part(image) for image in images), {"type": "text", "text": "look"}])


def received(stack: Stack) -> list[Pixels]:
    """Return the tiles that the worker received with the last request, in order."""
    assignment = stack.worker.assignments[-1]
    shape = (SPEC.side, SPEC.side, 3)
    return [
        np.frombuffer(assignment.pixels[image.digest], np.uint8).reshape(shape)
        for image in assignment.job.images
    ]


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(scene().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif.tobytes())


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.linspace(0, 65535, 800).reshape(20, 40).astype(np.uint16)), "PNG")


def animation(format: str) -> bytes:
    frames = [Image.new("RGB", (40, 20), (0, 255, 0))] * 3
    return encoded(scene(), format, save_all=True, append_images=frames, lossless=True)


EXACT = {
    "png": encoded(scene()),
    "webp": encoded(scene(), "WEBP", lossless=True),
    "bmp": encoded(scene(), "BMP"),
    "gif": encoded(scene(), "GIF"),
    "tiff": encoded(scene(), "TIFF"),
    "multi-page tiff: first page": encoded(
        scene(), "TIFF", save_all=True, append_images=[Image.new("RGB", (40, 20))], compression="tiff_lzw"
    ),
    "animated gif: first frame": animation("GIF"),
    "animated webp: first frame": animation("WEBP"),
    "animated png: first frame": encoded(
        scene(), "PNG", save_all=True, append_images=[Image.new("RGB", (40, 20))]
    ),
    "palette": encoded(scene().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "alpha": encoded(scene().convert("RGBA"), "PNG"),
    "exif-rotated": oriented(6),
}


@pytest.mark.parametrize("name", EXACT)
def test_lossless_files_of_an_image_produce_the_same_pixels(stack: Stack, name: str) -> None:
    response = ask(stack, EXACT[name])
    assert text_of(response) == "user:[40x20]look", response.text
    assert np.array_equal(received(stack)[0], original_pad(scene(), SPEC.side))


ACCEPTED: dict[str, tuple[bytes | str, str]] = {
    "1x1": (encoded(scene(1, 1)), "[1x1]"),
    "jpeg": (encoded(scene(), "JPEG"), "[40x20]"),
    "grayscale jpeg": (encoded(scene().convert("L"), "JPEG"), "[40x20]"),
    "cmyk jpeg": (encoded(scene().convert("CMYK"), "JPEG"), "[40x20]"),
    "progressive jpeg": (encoded(scene(), "JPEG", progressive=True), "[40x20]"),
    "16-bit grayscale": (sixteen_bit(), "[40x20]"),
    "grayscale with alpha": (encoded(scene().convert("LA"), "PNG"), "[40x20]"),
    "black and white": (encoded(scene().convert("1"), "PNG"), "[40x20]"),
    "palette with transparency": (encoded(scene().convert("P"), "PNG", transparency=b"\x00\x10"), "[40x20]"),
    "broken exif": (encoded(scene(), "PNG", exif=b"Exif\x00\x00II*\x00garbage"), "[40x20]"),
    "very wide": (encoded(scene(700, 1)), "[700x1]"),
    "very tall": (encoded(scene(1, 700)), "[1x700]"),
    "multi-image jpeg": (encoded(scene(), "MPO", save_all=True, append_images=[scene()]), "[40x20]"),
    "without media type": (f"data:;base64,{base64.b64encode(encoded(scene())).decode()}", "[40x20]"),
    "with a charset": (data_url(encoded(scene()), "image/png;charset=utf-8"), "[40x20]"),
    "wrong media type": (data_url(encoded(scene()), "image/jpeg"), "[40x20]"),
    "upper case scheme": (data_url(encoded(scene())).replace("data:", "DATA:"), "[40x20]"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_but_valid_images_are_accepted(stack: Stack, name: str) -> None:
    image, expected = ACCEPTED[name]
    response = ask(stack, image)
    assert response.status_code == 200, response.text
    assert text_of(response) == f"user:{expected}look"


def test_sixteen_bit_image_keeps_its_gray_levels(stack: Stack) -> None:
    ask(stack, sixteen_bit())
    assert 100 < received(stack)[0][8:20].mean() < 155


PNG, JPEG = encoded(scene(200, 100)), encoded(scene(200, 100), "JPEG")

REJECTED: dict[str, tuple[bytes | str, str, str]] = {
    "text": (b"this is not an image", "invalid_image", "JPEG, PNG, WEBP, GIF, BMP and TIFF"),
    "empty": ("data:image/png;base64,", "invalid_image", "empty"),
    "pdf": (b"%PDF-1.7 ...", "invalid_image", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image", "not an image"),
    "truncated png": (PNG[: len(PNG) // 2], "invalid_image", "damaged or truncated"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "invalid_image", "damaged or truncated"),
    "truncated webp": (encoded(scene(), "WEBP")[:60], "invalid_image", "damaged or truncated"),
    "truncated gif": (encoded(scene(200, 100), "GIF")[:60], "invalid_image", "damaged or truncated"),
    "header only": (PNG[:8], "invalid_image", "damaged or truncated"),
    "flipped bytes": (PNG[:60] + bytes(b ^ 0x55 for b in PNG[60:]), "invalid_image", "damaged or truncated"),
    "huge size in the header": (png_claiming(60_000, 60_000), "image_too_large", "60000 x 60000"),
    "too many pixels": (png_claiming(8_000, 8_000), "image_too_large", "40000000"),
    "side too long": (png_claiming(20_000, 300), "image_too_large", "16384"),
    "huge size in a webp header": (
        b"RIFF\x40\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\xff\xff\x3f\xff\xff\x3f" + bytes(40),
        "image_too_large",
        "4194304 x 4194304",
    ),
    "zero width": (png_claiming(0, 10), "invalid_image", "damaged or truncated"),
    "bad base64": ("data:image/png;base64,iVBOR*w0KGgo=", "invalid_image_url", "base64 text is invalid"),
    "base64 with an incomplete group": (
        "data:image/png;base64,AAAAA",
        "invalid_image_url",
        "base64 text is invalid",
    ),
    "percent-encoded svg": ("data:image/svg+xml,%3Csvg%20xmlns='x'/%3E", "invalid_image", "not an image"),
    "base64 beyond ascii": ("data:image/png;base64,äöü", "invalid_image_url", "other than A-Z"),
    "not base64": ("data:image/png,abc", "invalid_image", "not an image"),
    "no comma": ("data:image/png;base64", "invalid_image_url", "no comma"),
    "text type": (data_url(PNG, "text/html"), "invalid_image_url", "text/html"),
    "http": ("http://127.0.0.1:1/a.png", "invalid_image_url", "does not fetch remote images"),
    "https": ("https://example.com/a.png", "invalid_image_url", "does not fetch remote images"),
    "upper case https": ("HTTPS://example.com/a.png", "invalid_image_url", "does not fetch remote images"),
    "file": (
        "file:///etc/passwd",
        "invalid_image_url",
        "'file' of the URL is not supported, and the server never",
    ),
    "ftp": ("ftp://a/b.png", "invalid_image_url", "'ftp' of the URL is not supported"),
    "a path": ("/etc/passwd", "invalid_image_url", "not a data: URL"),
    "a path with a drive": ("C:/image.png", "invalid_image_url", "not a data: URL"),
    "bare base64": (base64.b64encode(PNG).decode(), "invalid_image_url", "not a data: URL"),
    "no url": ("", "invalid_image_url", "not a data: URL"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_invalid_image_returns_a_clear_400_and_the_next_request_works(stack: Stack, name: str) -> None:
    image, code, words = REJECTED[name]
    response = ask(stack, image)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, code), error
    assert words in error["message"]
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert not LEAKS.search(error["message"].replace("+ / =", ""))
    assert stack.works()


def test_the_error_names_the_invalid_image_of_several(stack: Stack) -> None:
    response = ask(stack, PNG, b"nonsense", PNG)
    assert response.json()["error"]["param"] == "messages[0].content[1].image_url.url"


def test_images_and_texts_keep_their_order_across_turns(stack: Stack) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [part(encoded(scene(30, 10))), {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a thing"}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and "}, part(PNG), {"type": "text", "text": "now?"}],
        },
    ]
    response = stack.chat(messages=messages)
    assert text_of(response) == "system:be brief|user:[30x10]what?|assistant:a thing|user:and [200x100]now?"
    assert np.array_equal(received(stack)[1], original_pad(scene(200, 100), SPEC.side))


def test_image_placeholders_in_text_are_plain_text(stack: Stack) -> None:
    response = stack.chat("look at <image> </s> <|im_end|>")
    assert text_of(response) == "user:look at <image> </s> <|im_end|>"
    assert not stack.worker.assignments[-1].job.images


def test_more_images_than_the_limit_are_rejected(stack: Stack) -> None:
    response = ask(stack, *[PNG] * 9)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "too_many_images")
    assert "9" in error["message"]
    assert "limit is 8" in error["message"]
    assert text_of(ask(stack, *[PNG] * 8)) == "user:" + "[200x100]" * 8 + "look"


def test_same_image_is_decoded_once_and_has_the_same_digest(stack: Stack) -> None:
    image = encoded(scene(51, 23))
    hits = stack.server.metric("llava_mm_cache_hits_total")
    ask(stack, image)
    ask(stack, image)
    first, second = stack.worker.assignments[-2:]
    assert first.job.images == second.job.images
    assert stack.server.metric("llava_mm_cache_hits_total") == hits + 1
