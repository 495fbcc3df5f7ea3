"""Prepares stdin, stdout and stderr so that no text and no closed stream causes a traceback.

Characters that the encoding of a stream cannot represent are printed as JSON escapes (``\\u00e9``). JSON
output therefore remains valid JSON. This also applies to lone surrogates, which Python uses for invalid
bytes in arguments and file names. Invalid bytes on stdin are replaced with U+FFFD.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

__all__ = ["discard_output", "safe_streams"]

_ESCAPE = "llava_cli.json_escape"  # name of the error handler
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG})


@contextmanager
def safe_streams() -> Iterator[None]:
    """Prepare the streams, and flush stdout at the end.

    Exit with status 1 if stdout cannot be written. If it is a closed pipe, as in ``... | head -1``, nothing
    is printed. Otherwise, the reason is printed as one line on stderr.
    """
    codecs.register_error(_ESCAPE, _json_escape)
    sys.stdout = _open_if_closed(sys.stdout, "w")
    sys.stderr = _open_if_closed(sys.stderr, "w")
    sys.stdin = _open_if_closed(sys.stdin, "r")
    for stream, errors in ((sys.stdout, _ESCAPE), (sys.stderr, _ESCAPE), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _WRITE_ERRORS or error.filename is not None:
            raise
        discard_output()
        sys.stderr.write(f"llava-serve: Cannot write the output: {error.strerror}.\n")
        raise SystemExit(1) from None


def discard_output() -> None:
    """Discard further output, because flushing it at exit would fail and print an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_if_closed(stream: TextIO | None, mode: str) -> TextIO:
    """Return the stream, or the null device if the process was started without it (``>&-``)."""
    return cast(TextIO, open(os.devnull, mode, encoding="utf-8")) if stream is None else stream


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
