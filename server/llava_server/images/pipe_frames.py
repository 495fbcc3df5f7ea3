"""Messages between the server and a decoder process. Each consists of a small JSON header and a body.

    ready     {"ready", "sandbox_error": why the process is not sandboxed, or null}
    request   {"encoding", "side", "fit", "background", "grid", "transparency", and the limits of one image}
              + the data of a data: URL
    response  {"width", "height"} + tiles of side * side * 3 bytes of RGB
              {"error": reason, ...numbers}, with an empty body

Both sides reject frames larger than ``MAX_FRAME_BYTES``.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

__all__ = ["MAX_FRAME_BYTES", "BrokenFrame", "read_frame", "write_frame"]

MAX_FRAME_BYTES = 256 * 2**20
_LENGTHS = struct.Struct(">II")  # length of the header, length of the body


class BrokenFrame(Exception):
    """The other process has exited or violated the protocol."""


def write_frame(pipe: BinaryIO, head: dict[str, Any], body: bytes = b"") -> None:
    """Write one frame. Raises BrokenPipeError if the reader has exited."""
    encoded = json.dumps(head).encode()
    pipe.write(_LENGTHS.pack(len(encoded), len(body)) + encoded)
    pipe.write(body)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Return the next frame, or None at the end of the pipe. Raises BrokenFrame for an invalid frame."""
    lengths = pipe.read(_LENGTHS.size)
    if not lengths:
        return None
    if len(lengths) < _LENGTHS.size:
        raise BrokenFrame("The pipe was closed in the middle of a frame.")
    head_bytes, body_bytes = _LENGTHS.unpack(lengths)
    if (num_bytes := head_bytes + body_bytes) > MAX_FRAME_BYTES:
        raise BrokenFrame(f"The frame is {num_bytes} bytes; the limit is {MAX_FRAME_BYTES} bytes.")
    head, body = pipe.read(head_bytes), pipe.read(body_bytes)
    if len(head) < head_bytes or len(body) < body_bytes:
        raise BrokenFrame("The pipe was closed in the middle of a frame.")
    try:
        return dict(json.loads(head)), body
    except ValueError as error:
        raise BrokenFrame("The header of the frame is not valid JSON.") from error
