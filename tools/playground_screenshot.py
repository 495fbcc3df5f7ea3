"""Save a screenshot of the playground to docs/images/playground.png.

    python tools/playground_screenshot.py [URL] [MODEL]

The server must be running. Defaults: http://127.0.0.1:8000 and tiny-llava.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

OUT = Path(__file__).parents[1] / "docs" / "images" / "playground.png"
CHROMIUM = "/usr/bin/chromium"
SIZE = (1100, 830)
QUESTIONS = ("Describe the picture in one sentence.", "What colour is the heart?")


def converse(page: Page, model: str) -> None:
    """Ask both questions about the example image, and wait for each response."""
    page.get_by_label("Model").select_option(model)
    page.get_by_role("button", name="A red heart").click()
    expect(page.get_by_label("Images to send").get_by_role("img")).to_have_count(1)
    for number, question in enumerate(QUESTIONS):
        field = page.get_by_label("Your question")
        field.fill(question)
        field.press("Enter")
        turn = page.locator(".turn").nth(number)
        expect(turn.get_by_role("button", name="Copy as curl")).to_be_visible(timeout=60_000)


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    model = sys.argv[2] if len(sys.argv) > 2 else "tiny-llava"
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-sync"]
        )
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme="light")
        page.goto(url)
        converse(page, model)
        page.screenshot(path=OUT, animations="disabled")
        browser.close()
    with Image.open(OUT) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
