"""The bundled model recognizes a shape on a transparent background, unless transparency is dropped."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from PIL import Image, ImageDraw

from tests.e2e.conftest import TINY
from tests.machine_speed import scaled
from tests.processes import running_controller, worker_factory
from tests.server.image_files import encoded, part
from tests.wire.redis_server import running_redis

ANSWERS = {
    "What color is the circle?": "The circle is black.",
    "What is the shape of the black object?": "The black object is a circle.",
    "Is there a black circle?": "Yes, there is a black circle.",
}
BLACK, WHITE, TRANSPARENT = (0, 0, 0, 255), (255, 255, 255, 255), (0, 0, 0, 0)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URL of a controller with each setting. Both controllers use the same worker."""
    default, drop = (tmp_path_factory.mktemp(name) for name in ("default", "drop"))
    with running_redis() as queue, worker_factory(queue, default) as start_worker:
        start_worker(**TINY)
        with (
            running_controller(queue, default) as first,
            running_controller(queue, drop, image_transparency="drop") as second,
        ):
            yield {"default": first.url, "drop": second.url}


def black_circle(background: tuple[int, int, int, int], format: str) -> bytes:
    image = Image.new("RGBA", (224, 224), background)
    ImageDraw.Draw(image).ellipse((72, 72, 152, 152), BLACK)
    return encoded(image, format)


def answers(url: str, image: bytes) -> dict[str, str]:
    texts = {}
    for question in ANSWERS:
        messages = [{"role": "user", "content": [part(image), {"type": "text", "text": question}]}]
        body = {"model": "tiny-llava", "messages": messages, "temperature": 0}
        response = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=scaled(60))
        texts[question] = response.json()["choices"][0]["message"]["content"]
    return texts


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_a_black_circle_on_a_transparent_background_is_recognized(urls: dict[str, str], format: str) -> None:
    assert answers(urls["default"], black_circle(TRANSPARENT, format)) == ANSWERS


def test_it_is_not_recognized_if_transparency_is_dropped(urls: dict[str, str]) -> None:
    """The color under the transparency is black, so the image is black on black."""
    assert answers(urls["drop"], black_circle(TRANSPARENT, "PNG")) == {
        "What color is the circle?": "There is no circle.",
        "What is the shape of the black object?": "There is no black object.",
        "Is there a black circle?": "No, there is no black circle.",
    }
    assert answers(urls["drop"], black_circle(WHITE, "PNG")) == ANSWERS
