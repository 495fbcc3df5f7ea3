"""Reads the text and JSON files of a checkpoint, which are untrusted.

Only regular files are read: opening a pipe would block the worker, and a device could have no end. The size
of a file and the number and depth of its JSON values are limited before objects are created, because a JSON
value of two bytes becomes an object of 50 to 100 bytes. The limits are far above those of published models.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "MAX_JSON_BYTES",
    "CheckpointError",
    "open_regular",
    "parse_json_object",
    "read_bytes",
    "read_json_object",
    "read_text",
    "require_model_type",
]

MAX_JSON_BYTES = 16 << 20
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 32


class CheckpointError(ValueError):
    """The folder does not contain a supported checkpoint. The message identifies the file and the problem."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file without buffering. Raises CheckpointError unless it is a regular file that can be read."""
    try:
        # With O_NONBLOCK, opening a pipe returns immediately. It has no effect on regular files.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a regular file. Replace it with a file.")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a file. Raises CheckpointError if it is longer than ``max_bytes``."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise CheckpointError(f"{path} is {_mib(size)}; the limit is {_mib(max_bytes)}.")
        try:
            return file.read(max_bytes)
        except OSError as error:
            raise _unreadable(path, error) from error


def read_text(path: Path, *, max_bytes: int) -> str:
    """Return the text in a UTF-8 file. Raises CheckpointError."""
    try:
        return read_bytes(path, max_bytes=max_bytes).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not valid UTF-8: {error}.") from error


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in the file, or an empty object if there is no file. Raises CheckpointError."""
    if not os.path.lexists(path):
        return {}
    return parse_json_object(read_bytes(path, max_bytes=max_bytes), str(path))


def require_model_type(values: dict[str, Any], path: Path) -> str:
    """Return the ``model_type`` in config.json, whose path is used in errors. Raises CheckpointError."""
    if "model_type" not in values:
        raise CheckpointError(
            f"{path} has no model_type, which identifies the model, so replace the file with the config.json "
            "that was published with the checkpoint, in which model_type is, for example, llava, llava_next "
            "or qwen2_vl."
        )
    model_type = values["model_type"]
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{path} has model_type {model_type!r:.80}; it must be a string, for example llava, llava_next "
            "or qwen2_vl."
        )
    return model_type


def parse_json_object(data: bytes, name: str, *, has_unique_keys: bool = False) -> dict[str, Any]:
    """Return the JSON object in ``data``. ``name`` describes the data in errors. Raises CheckpointError.

    If ``has_unique_keys`` is true, objects must not contain the same key twice. Otherwise, the last one
    applies, as in all common parsers.
    """
    # Every value but the first follows one of these characters. Those in strings are counted, too.
    if (num := sum(map(data.count, (b",", b"[", b"{")))) > _MAX_VALUES:
        raise CheckpointError(f"{name} contains {num} JSON values; the limit is {_MAX_VALUES}.")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique_keys if has_unique_keys else None)
    except ValueError as error:
        raise CheckpointError(f"{name} is not valid JSON: {error}.") from error
    except RecursionError:
        value = _TOO_DEEP
    if value is _TOO_DEEP or _is_deeper(value, _MAX_DEPTH):
        raise CheckpointError(f"{name} is nested too deeply; the limit is {_MAX_DEPTH} levels.")
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} does not contain a JSON object.")
    return value


_TOO_DEEP = object()


def _is_deeper(value: Any, limit: int) -> bool:
    """Return whether objects and lists are nested in more than ``limit`` levels, without recursion."""
    level = [value]
    for _ in range(limit + 1):
        level = (
            [
                child
                for parent in level
                for child in (parent.values() if isinstance(parent, dict) else parent)
                if isinstance(child, (dict, list))
            ]
            if isinstance(value, (dict, list))
            else []
        )
        if not level:
            return False
    return True


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object contains the key {twice!r} twice")
    return values


def _unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) else error
    return CheckpointError(f"{path} could not be read: {reason}.")


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
