"""Record how a stream in the playground continues after its worker was killed, as an animated WebP image.

    python tools/failover_recording.py

Starts ``llava-serve up`` with two workers and the echo model, asks a question in headless Chromium, kills the
worker that generates the response, and writes docs/images/failover.webp. Takes about 30 seconds.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Page, expect, sync_playwright

OUT = Path(__file__).parents[1] / "docs" / "images" / "failover.webp"
CHROMIUM = "/usr/bin/chromium"
COMMAND = str(Path(sys.executable).parent / "llava-serve")
WIDTH, HEIGHT, CAPTION_HEIGHT = 800, 470, 34  # pixels
FRAME_S = 0.25
QUESTION = "Count slowly."
SETTINGS = {"LLAVA_ECHO_STEP_S": "0.15", "LLAVA_LEASE_S": "3"}


@contextmanager
def running_up() -> Iterator[str]:
    """Run ``up`` and yield its URL."""
    command = [COMMAND, "up", "--model", "echo", "--workers", "2", "--port", "0"]
    environment = {**os.environ, **SETTINGS}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield next(
                line.split()[1].rstrip("/") for line in process.stdout if line.startswith("playground")
            )
        finally:
            process.send_signal(signal.SIGINT)


def process_of_stream() -> int:
    """Return the ID of the process that generates the response. It is part of the worker's name."""
    shown = subprocess.run([COMMAND, "top", "--once"], capture_output=True, text=True, check=True).stdout
    streams = shown[shown.index("streams") :]
    name = re.search(r"-(\d+)-[0-9a-f]{8}", streams)
    assert name, f"no worker generates a response:\n{shown}"
    return int(name[1])


def frames_of(page: Page, caption: str, seconds: float) -> Iterator[Image.Image]:
    """Yield screenshots with a caption."""
    font = ImageFont.load_default(16)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        started = time.monotonic()
        with Image.open(io.BytesIO(page.screenshot())) as shot:
            frame = Image.new("RGB", (WIDTH, HEIGHT + CAPTION_HEIGHT), "#1f2430")
            frame.paste(shot.convert("RGB"), (0, CAPTION_HEIGHT))
        ImageDraw.Draw(frame).text((14, 8), caption, fill="white", font=font)
        yield frame
        time.sleep(max(0.0, started + FRAME_S - time.monotonic()))


def record(page: Page) -> list[Image.Image]:
    """Ask the question, kill the worker during the response, and return the frames."""
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_label("Your question").press("Enter")
    frames = list(frames_of(page, "Two workers. One of them generates the response.", 3))
    killed = process_of_stream()
    os.kill(killed, signal.SIGKILL)
    frames += frames_of(page, f"kill -9 {killed}: its lease expires after 3 seconds.", 3.5)
    frames += frames_of(page, "The other worker continues at the next token.", 5)
    expect(page.get_by_role("button", name="Copy as curl")).to_be_visible(timeout=60_000)
    return [*frames, *frames_of(page, "The response is complete. The client received no error.", 2)]


def main() -> None:
    with running_up() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(url)
        expect(page.get_by_label("Model")).to_have_value("echo")
        first, *others = record(page)
        browser.close()
    first.save(
        OUT, save_all=True, append_images=others, duration=int(FRAME_S * 1000), loop=0, quality=60, method=4
    )
    print(f"{OUT}: {OUT.stat().st_size} bytes, {len(others) + 1} frames")


if __name__ == "__main__":
    main()
