"""Functions that perform user actions on the playground page or read its content."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

from PIL import Image
from playwright.sync_api import Locator, Page, Request, Route, expect

from tests.machine_speed import scaled

__all__ = [
    "response_text",
    "ask",
    "copied",
    "drop",
    "drop_image",
    "finished",
    "noise",
    "scene",
    "scripted",
    "sent",
]


def scene() -> bytes:
    """Return a PNG with a size of a few hundred bytes."""
    image = Image.new("RGB", (64, 48), (200, 220, 200))
    image.paste((210, 60, 50), (8, 8, 32, 40))
    return _png(image)


def noise(side: int) -> bytes:
    """Return an incompressible PNG with a size of about 3 * side * side bytes."""
    return _png(Image.frombytes("RGB", (side, side), random.Random(side).randbytes(3 * side * side)))


def drop(page: Page, *files: tuple[str, str, bytes]) -> None:
    """Drag files (name, media type, content) onto the page and drop them."""
    contents = [[name, kind, base64.b64encode(content).decode()] for name, kind, content in files]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, type, content] of files) {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type }));
            }
            return transfer;
        }""",
        contents,
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop the image anywhere")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop the image anywhere")).to_be_hidden()


def drop_image(page: Page, name: str = "scene.png", content: bytes | None = None) -> None:
    """Drop a PNG onto the page and wait for its thumbnail."""
    drop(page, (name, "image/png", content or scene()))
    expect(page.get_by_label("Images to send").get_by_role("img", name=name, exact=True)).to_be_visible()


def ask(page: Page, question: str) -> None:
    """Wait until a model is available, type the question and press Enter."""
    expect(page.get_by_label("Model")).to_be_enabled()
    field = page.get_by_label("Your question")
    field.fill(question)
    field.press("Enter")


def response_text(page: Page) -> Locator:
    """Return the element with the text of the latest response."""
    return page.locator(".turn").last.locator(".response-text")


def finished(page: Page) -> str:
    """Wait until the latest response is complete and return its text."""
    expect(page.locator(".turn").last.get_by_role("button", name="Copy as curl")).to_be_visible(
        timeout=scaled(30_000)
    )
    return response_text(page).text_content() or ""


def copied(page: Page, button: str) -> str:
    """Click a copy button of the latest response and return the text on the clipboard."""
    turn = page.locator(".turn").last
    turn.get_by_role("button", name=button).click()
    expect(turn.get_by_role("button", name="Copied")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    expect(turn.get_by_role("button", name="Copied")).to_be_hidden()  # wait until the label is restored
    assert isinstance(text, str)
    return text


def sent(request: Request) -> dict[str, Any]:
    """Return the JSON body of a chat request."""
    body = request.post_data_json
    assert isinstance(body, dict)
    return body


def scripted(page: Page, *pieces: str) -> None:
    """Make all subsequent chat requests return these pieces of text."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def fulfill(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", fulfill)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
