"""Messages on the pipes between the server and a decoder process: a small JSON head and raw bytes.

    ready     {"ready", "sandbox_error": the reason that the process is not sandboxed, or null}
    request   {"side", "fit", "background", "grid", "max_pixels", "max_side", "max_ratio", "cpu_s"} + base64
    response  {"width", "height"} + tiles of side * side * 3 bytes of RGB
              {"error": reason, ...numbers}, without raw bytes

Both sides reject frames larger than ``MAX_FRAME_BYTES``.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

__all__ = ["MAX_FRAME_BYTES", "BrokenFrame", "read_frame", "write_frame"]

MAX_FRAME_BYTES = 256 * 2**20
_LENGTHS = struct.Struct(">II")  # head, body


class BrokenFrame(Exception):
    """The other process has exited or violated the protocol."""


def write_frame(pipe: BinaryIO, head: dict[str, Any], body: bytes = b"") -> None:
    """Write one frame. Raises BrokenPipeError if the reader has exited."""
    encoded = json.dumps(head).encode()
    pipe.write(_LENGTHS.pack(len(encoded), len(body)) + encoded)
    pipe.write(body)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Return the next frame, or None at the end of the pipe. Raises BrokenFrame for a partial frame."""
    lengths = pipe.read(_LENGTHS.size)
    if not lengths:
        return None
    if len(lengths) < _LENGTHS.size:
        raise BrokenFrame("The pipe ended inside a frame.")
    head_bytes, body_bytes = _LENGTHS.unpack(lengths)
    if (num_bytes := head_bytes + body_bytes) > MAX_FRAME_BYTES:
        raise BrokenFrame(f"The frame has {num_bytes} bytes; the limit is {MAX_FRAME_BYTES}.")
    head, body = pipe.read(head_bytes), pipe.read(body_bytes)
    if len(head) < head_bytes or len(body) < body_bytes:
        raise BrokenFrame("The pipe ended inside a frame.")
    try:
        return dict(json.loads(head)), body
    except ValueError as error:
        raise BrokenFrame("The head of the frame is not JSON.") from error
