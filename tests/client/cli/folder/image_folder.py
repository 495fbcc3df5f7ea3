"""Creates folders of small images, runs ``llava-serve batch --images`` and reads the results."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from llava_cli import create_app
from typer.testing import CliRunner, Result

from tests.client.scripted_server import send

__all__ = ["add_images", "digest_of", "png", "read_results", "returns_digest", "run_batch"]


def png(number: int) -> bytes:
    """Return a PNG file of one pixel. Its color encodes ``number``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + number.to_bytes(3, "big"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def add_images(folder: Path, count: int) -> list[str]:
    """Create ``count`` images and return their names."""
    folder.mkdir(exist_ok=True)
    names = [f"{number:04}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(png(number))
    return names


def run_batch(
    server_url: str, folder: Path, output: Path, *arguments: str, prompt: str = "say yes"
) -> Result:
    """Run the command in this process."""
    command = ["batch", "--images", str(folder), "--prompt", prompt, "--out", str(output)]
    return CliRunner().invoke(create_app(), [*command, "--base-url", server_url, *arguments])


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def returns_digest(handler: BaseHTTPRequestHandler) -> None:
    """Respond with the SHA-256 digest of the image in the request."""
    [image, _] = handler.request_body["messages"][-1]["content"]  # type: ignore[attr-defined]
    data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    message = {"role": "assistant", "content": hashlib.sha256(data).hexdigest()}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    send(handler, 200, json.dumps({"id": "chatcmpl-1", "model": "m", "choices": [choice]}).encode())
