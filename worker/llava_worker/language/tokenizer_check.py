"""Loads untrusted tokenizer files in a `SandboxedProcess` before the worker loads them itself.

The tokenizers library is fast, but it trusts its files: a file can contain a regular expression that never
ends or does not fit in memory, a normalizer that multiplies the length of each text, or values that abort the
process. The child process loads the files and tokenizes texts that make common expressions backtrack. A file
that passes can still contain an expression that is slow for a specific text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llava_worker.language.byte_level_files import has_byte_level_files, read_byte_level_files
from llava_worker.language.tokenizer import TokenizerError
from llava_worker.model.config.untrusted_file import CheckpointError, read_bytes
from llava_worker.sandboxed_process import ProcessFailure, ProcessLimits, SandboxedProcess, serve

__all__ = ["TokenizerCheck"]

_LIMITS = ProcessLimits(cpu_s=10.0, timeout_s=120.0, memory_bytes=2 << 30)
_MAX_BYTES = 64 << 20
_VOCABULARY = "vocab.json"
_MAX_GROWTH = 64  # of a text's length by the normalizer, in characters
_MAX_ADDED_TOKENS = 1 << 16
_MAX_ERROR_LENGTH = 500
_UNITS = ("a", "A", " ", "1", "\n", ".", "é", "好", "aA1 .")
# Backtracking starts if an expression matches the repeated part of a text, but not its end. The end contains
# all ASCII characters, because a library skips a text without the characters that an expression requires.
_ENDS = ("", "!", "\0" + "".join(map(chr, range(1, 128))))
_PROBES = tuple(unit * (1000 // len(unit)) + end for unit in _UNITS for end in _ENDS)


class TokenizerCheck:
    """A child process for one check. It is killed when the object is deleted or closed."""

    def __init__(self) -> None:
        """Start the process without waiting until it is ready."""
        self._process = SandboxedProcess("llava_worker.language.tokenizer_check", _LIMITS)
        self._process.start()

    def check(self, folder: Path) -> None:
        """Check the folder's tokenizer.json, or its vocab.json and merges.txt. Raises TokenizerError."""
        path = folder / "tokenizer.json"
        if not path.exists() and has_byte_level_files(folder):
            path = folder / _VOCABULARY
        if not path.exists():
            return
        try:
            error = self._process.request(str(path))
        except ProcessFailure as failure:
            raise TokenizerError(f"The tokenizer file {path} {_REASONS[failure.reason]}") from failure
        if error is not None:
            raise TokenizerError(error)

    def close(self) -> None:
        self._process.close()


_REASONS = {
    "time": f"takes longer than {_LIMITS.cpu_s:g} seconds of CPU time to load and to tokenize "
    f"{len(_PROBES)} short texts. Simplify its regular expressions.",
    "memory": f"needs more than {_LIMITS.memory_bytes >> 20} MiB of memory. Use a smaller vocabulary.",
    "crash": "makes the tokenizers library crash when it loads the file or tokenizes a short text. Check "
    "its regular expressions and its vocabulary.",
}


def _open_checker(_setup: Any) -> Callable[[Any], object]:
    return _find_error


def _find_error(path: Any) -> str | None:
    """Return why the file, or vocab.json with the files next to it, cannot be used, or None if it can."""
    try:
        tokenizer = _load(Path(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        description = tokenizer.to_str()
        Tokenizer.from_str(description)  # fails if two tokens have the same ID, for example
        problem = _problem(json.loads(description))
        if problem is None:
            for text in _PROBES:
                tokenizer.encode(text, add_special_tokens=False)
    except MemoryError:
        raise
    except (CheckpointError, TokenizerError) as error:
        return str(error)
    except Exception as error:  # the tokenizers library raises a plain Exception if it cannot read a file
        return f"The tokenizer file {path} could not be read: {str(error)[:_MAX_ERROR_LENGTH]}"
    return None if problem is None else f"The tokenizer file {path} is not supported: {problem}"


def _load(path: Path) -> Tokenizer:
    if path.name == _VOCABULARY:
        return read_byte_level_files(path.parent)
    return Tokenizer.from_buffer(read_bytes(path, max_bytes=_MAX_BYTES))


def _problem(description: dict[str, Any]) -> str | None:
    """Return which limit the tokenizer exceeds, or None. ``description`` was written by the library."""
    if (num := len(description["added_tokens"])) > _MAX_ADDED_TOKENS:
        return f"it has {num} added_tokens; the limit is {_MAX_ADDED_TOKENS}."
    growth = 1
    for step in _steps(description["normalizer"]):
        if step["type"] == "Precompiled":
            return "its normalizer is compiled. Only tokenizers like Llama's and GPT-2's are supported."
        if step["type"] == "Prepend":
            growth *= len(step["prepend"]) + 1
        elif step["type"] == "Replace":
            replaced = len(step["pattern"].get("String", ""))  # an expression may match an empty text
            growth *= max(1, len(step["content"]) // replaced if replaced else len(step["content"]) + 1)
    if growth > _MAX_GROWTH:
        return f"its normalizer can make a text {growth:.2g} times as long; the limit is {_MAX_GROWTH} times."
    return None


def _steps(normalizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if normalizer is None:
        return
    if normalizer["type"] != "Sequence":
        yield normalizer
    for step in normalizer.get("normalizers", []):
        yield from _steps(step)


if __name__ == "__main__":
    serve(_open_checker)
