"""Data URLs are parsed and decoded according to the WHATWG Fetch and Infra standards, in linear time."""

from __future__ import annotations

import base64
import contextlib
import time
from urllib.parse import quote

import pytest
from llava_server.images.data_url import decode_body, parse_data_url
from llava_server.images.errors import ImageError

from tests.machine_speed import scaled
from tests.server.conftest import Stack, text_of
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL

FILE = encoded(scene())
TEXT = base64.b64encode(FILE + b"\xfb\xff\xfe").decode()
SIZE = 24 * 2**20  # characters, about as many as a request may contain


def body_of(url: str, *, max_bytes: int = SIZE) -> bytes:
    image = parse_data_url(url, max_bytes=max_bytes)
    return decode_body(image.data, image.encoding)


def wrapped(text: str, width: int, line_break: str) -> str:
    return line_break.join(text[start : start + width] for start in range(0, len(text), width))


EQUAL = {
    "line breaks": "data:image/png;base64," + wrapped(TEXT, 76, "\n"),
    "windows line breaks": "data:image/png;base64," + wrapped(TEXT, 64, "\r\n"),
    "tabs, form feeds and spaces": "data:image/png;base64," + wrapped(TEXT, 5, "\t\f "),
    "no padding": "data:image/png;base64," + TEXT.rstrip("="),
    "a space after the comma": "data:image/png;base64, " + TEXT,
    "percent-encoded characters": "data:image/png;base64," + quote(TEXT, safe=""),
    "lowercase percent encoding": "data:image/png;base64," + TEXT.replace("+", "%2b").replace("/", "%2f"),
    "percent-encoded line breaks": "data:image/png;base64," + wrapped(TEXT, 76, "%0D%0A"),
    "every character percent-encoded": "data:;base64," + "".join(f"%{ord(each):02X}" for each in TEXT),
    "the url-safe alphabet": "data:image/png;base64," + TEXT.replace("+", "-").replace("/", "_"),
    "uppercase": "DATA:IMAGE/PNG;BASE64," + TEXT,
    "parameters": 'data:image/png;charset=utf-8;name="a.png";base64,' + TEXT,
    "spaces around base64": "data:image/png ; base64 ," + TEXT,
    "no media type": "data:;base64," + TEXT,
    "surrounding whitespace": " \n data:image/png;base64," + TEXT + "\n ",
    "a line break in the media type": "data:image/\npng;base64," + TEXT,
    "a fragment": "data:image/png;base64," + TEXT + "#fragment",
    "percent-encoded bytes": "data:image/png," + quote(base64.b64decode(TEXT)),
}


@pytest.mark.parametrize("name", EQUAL)
def test_all_spellings_of_a_file_are_decoded_to_the_same_bytes(name: str) -> None:
    assert body_of(EQUAL[name]) == FILE + b"\xfb\xff\xfe"


INVALID = [
    "A",
    "AAAAA",
    "AAA==",
    "AA=",
    "AAAA=",
    "A===",
    "=",
    "AA=A",
    "AA==AA",
    "AA*A",
    "%AA%",
    "AA\x00A",
    "A%3DAA",
]


@pytest.mark.parametrize("text", INVALID)
def test_invalid_base64_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="base64 text"):
        body_of(f"data:image/png;base64,{text}")


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (";base64", "base64"),
        ("image/png;  base64", "base64"),
        (";base64 ", "base64"),
        (";base64;base64", "base64"),
        ("image/png;base64x", "percent"),
        ("image/png;base64;x", "percent"),
        ("image/png;base64=x", "percent"),
        (";base 64", "percent"),
        (";%62ase64", "percent"),
        ("image/base64", "percent"),
    ],
)
def test_only_a_base64_suffix_makes_the_data_base64(head: str, encoding: str) -> None:
    assert parse_data_url(f"data:{head},AAAA", max_bytes=9).encoding == encoding


LARGE = {
    "plain": "A" * SIZE,
    "line breaks": ("A" * 76 + "\r\n") * (SIZE // 78),
    "percent-encoded": ("A" * 29 + "%2B") * (SIZE // 32),
    "only whitespace": "\n" * SIZE + "AAAA",
    "only percent signs": "%" * SIZE,
    "commas": "," * SIZE,
}


@pytest.mark.parametrize("name", LARGE)
def test_large_data_is_parsed_and_decoded_in_linear_time(name: str) -> None:
    """Quadratic steps would take hours for data of this size."""
    start = time.process_time()
    with contextlib.suppress(ValueError):  # some of the data is not base64
        body_of(f"data:image/png;base64,{LARGE[name]}")
    assert time.process_time() - start < scaled(5)


def test_the_size_limit_does_not_count_whitespace_and_percent_encoding() -> None:
    text = base64.b64encode(bytes(3000)).decode()
    for each in (text, wrapped(text, 4, " \r\n"), text.replace("A", "%41")):
        assert body_of(f"data:image/png;base64,{each}", max_bytes=3000) == bytes(3000)
        with pytest.raises(ImageError, match="about 3000 bytes; the limit is 2997"):
            parse_data_url(f"data:image/png;base64,{each}", max_bytes=2997)


@pytest.mark.parametrize("name", EQUAL)
def test_a_request_accepts_every_spelling(stack: Stack, name: str) -> None:
    response = stack.chat([{"type": "image_url", "image_url": {"url": EQUAL[name]}}])
    assert text_of(response) == "user:[40x20]"


def test_an_image_url_can_be_a_plain_string_and_its_detail_can_be_original(stack: Stack) -> None:
    url = part(FILE)["image_url"]["url"]
    for image_url in (url, {"url": url}, {"url": url, "detail": "original"}):
        assert text_of(stack.chat([{"type": "image_url", "image_url": image_url}])) == "user:[40x20]"
    for image_url in (url, {"url": url, "detail": "original"}):
        content = [{"type": "input_image", "image_url": image_url, "detail": "original"}]
        body = {"model": MODEL, "input": [{"role": "user", "content": content}]}
        response = stack.http.post("/v1/responses", json=body)
        assert response.json()["output"][0]["content"][0]["text"] == "user:[40x20]", response.text


@pytest.mark.parametrize("image_url", [None, 5, [], {}, {"url": None}, {"url": {"url": "x"}}])
def test_an_image_url_of_another_type_is_a_400_that_names_the_field(stack: Stack, image_url: object) -> None:
    response = stack.chat([{"type": "image_url", "image_url": image_url}])
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages[0].content[0].image_url")
