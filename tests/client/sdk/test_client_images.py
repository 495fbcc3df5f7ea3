"""Supported types of image arguments, and invalid images."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from llava_client import ImageError
from llava_client.images import image_parts, image_url, media_type
from PIL import Image

from tests.client.scripted_server import PNG

PNG_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize("form", ["str", "path", "bytes", "bytearray", "memoryview"])
def test_all_forms_of_an_image_give_the_same_url(form: str, tmp_path: Path) -> None:
    path = tmp_path / "misnamed.jpg"  # the type is detected from the bytes, not the name
    path.write_bytes(PNG)
    forms: dict[str, Any] = {
        "str": str(path),
        "path": path,
        "bytes": PNG,
        "bytearray": bytearray(PNG),
        "memoryview": memoryview(PNG),
    }
    assert image_url(forms[form]) == PNG_URL


@pytest.mark.parametrize("url", [PNG_URL, "https://host/a.png", "HTTP://host/a.png"])
def test_a_url_is_sent_unchanged(url: str) -> None:
    assert image_url(url) == url


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F", "YCbCr"])
def test_a_pil_image_of_any_mode_becomes_a_png(mode: str) -> None:
    url = image_url(Image.new(mode, (3, 2)))
    assert url.startswith("data:image/png;base64,")
    assert decoded(url).size == (3, 2)


@pytest.mark.parametrize(("source", "mode"), [("P", "PA"), ("LA", "La"), ("RGBA", "RGBa")])
def test_a_pil_image_that_png_cannot_store_keeps_its_transparency(source: str, mode: str) -> None:
    image = Image.new(source, (3, 2)).convert(mode)
    if mode == "PA":
        image.putalpha(Image.new("L", (3, 2), 0))
    assert decoded(image_url(image)).getchannel("A").getextrema() == (0, 0)


def test_a_pil_image_keeps_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "JPEG", exif=exif)
    assert decoded(image_url(Image.open(buffer))).getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("WEBP", "image/webp"),
        ("AVIF", "image/avif"),
    ],
)
def test_the_media_type_is_detected_from_the_first_bytes(format: str, kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format)
    assert media_type(buffer.getvalue()) == kind


def test_heic_is_distinguished_from_avif_and_other_data_is_rejected() -> None:
    assert media_type(b"\0\0\0\x18ftypheic") == "image/heic"
    assert media_type(b"RIFF\0\0\0\0WAVE") is None


def test_big_tiff_files_are_recognized() -> None:
    assert media_type(b"II+\0\x08\0\0\0") == media_type(b"MM\0+\0\x08\0\0") == "image/tiff"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "is empty"),
        (b"hello, world", r"begins with b'hello, w'.*Use PNG, JPEG"),
        ("nowhere.png", "Cannot read image 'nowhere.png': No such file"),
        ("nul\0.png", "Cannot read image"),
        (42, "type int are not supported. Pass a path"),
        (io.BytesIO(PNG), "type BytesIO are not supported"),
    ],
)
def test_invalid_images_are_rejected_with_the_reason(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        image_url(image)
    assert isinstance(caught.value, ValueError)


def test_a_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="Is a directory"):
        image_url(tmp_path)


def test_multiple_images_keep_their_order() -> None:
    parts = image_parts([PNG, "https://host/b.png"])
    assert [part["image_url"]["url"] for part in parts] == [PNG_URL, "https://host/b.png"]
    assert [part["type"] for part in parts] == ["image_url", "image_url"]


def test_no_image_gives_no_parts() -> None:
    assert image_parts(None) == image_parts([]) == []
