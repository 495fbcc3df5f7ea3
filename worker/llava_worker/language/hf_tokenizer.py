"""A model's own tokenizer, from the ``tokenizer.json`` in its folder, or else its ``tokenizer.model``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from llava_worker.language.sentencepiece import read_sentencepiece
from llava_worker.language.tokenizer import TokenizerError

__all__ = ["FileTokenizer", "has_tokenizer"]


class FileTokenizer:
    """Of Llama's kind (byte fallback) or, from a ``tokenizer.json``, of GPT-2's kind (byte level)."""

    def __init__(self, folder: Path, *, image_id: int | None = None) -> None:
        """Raises TokenizerError. ``image_id`` None takes the id of ``<image>``, or 0 if there is none."""
        self._tokenizer = _load(folder)
        self._tokenizer.encode_special_tokens = True
        self._specials = {
            number: token
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._prefixes = _prefix_scheme(self._tokenizer)
        self._part_tokenizer = _part_tokenizer(self._tokenizer, self._prefixes)
        kind = _decoder_kind(json.loads(self._tokenizer.to_str())["decoder"])
        self._is_byte_level, self.strips_leading_space = kind
        self._bytes: dict[int, bytes] = {}
        config = _read_config(folder / "tokenizer_config.json")
        self.bos_token, self.eos_token = _named(config, "bos_token"), _named(config, "eos_token")
        self.bos_id = None if self.bos_token is None else self.special_id(self.bos_token)
        self.adds_bos = self.bos_id is not None and config.get("add_bos_token") is not False
        self.image_id = image_id if image_id is not None else self._tokenizer.token_to_id("<image>") or 0
        self._check_typed_specials()

    @property
    def special_tokens(self) -> list[str]:
        """The names of all special tokens."""
        return [token.content for token in self._specials.values()]

    def encode(self, text: str) -> list[int]:
        if self._prefixes != "never" and text.startswith((" ", "▁")):
            text = f" {text}"  # SentencePiece puts its space before a text that has one; the library does not
        return _ids(self._tokenizer, text)

    def encode_part(self, text: str, *, is_first: bool) -> list[int]:
        return _ids(self._tokenizer if is_first else self._part_tokenizer, text)

    def special_id(self, token: str) -> int:
        number: int | None = self._tokenizer.token_to_id(token)
        if number is None:
            raise TokenizerError(
                f"the tokenizer has no token {token!r}, which the conversation template needs"
            )
        return number

    def token_bytes(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._read_bytes(token_id)
        return known

    def _read_bytes(self, token_id: int) -> bytes:
        piece: str | None = self._tokenizer.id_to_token(token_id)
        if piece is None or token_id in self._specials:
            return b""
        if self._is_byte_level:
            return _byte_level_bytes(piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def _check_typed_specials(self) -> None:
        for number, token in self._specials.items():
            if number in self.encode(token.content):
                raise TokenizerError(f"typing {token.content!r} would yield the special token {number}")


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _load(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not has_tokenizer(folder):
        raise TokenizerError(f"{path} is missing: the model's folder needs one, or a tokenizer.model")
    if not path.is_file():
        return read_sentencepiece(folder / "tokenizer.model")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception for a file it cannot read
        raise TokenizerError(f"{path} is not a tokenizer.json: {error}") from error


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _prefix_scheme(tokenizer: Tokenizer) -> str:
    """Before which parts of a text the pre-tokenizer puts a space, unless they begin with one."""
    splitter = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    return str(splitter["prepend_scheme"]) if splitter.get("type") == "Metaspace" else "never"


def _part_tokenizer(tokenizer: Tokenizer, prefixes: str) -> Tokenizer:
    """For the parts of a text after the first one; mostly the same."""
    if prefixes != "first":
        return tokenizer
    other: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    other.encode_special_tokens = True
    splitter = json.loads(tokenizer.to_str())["pre_tokenizer"]
    other.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=splitter["replacement"], prepend_scheme="never", split=splitter["split"]
    )
    return other


def _read_config(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def _named(config: dict[str, Any], name: str) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object that has it as content."""
    token = config.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else str(content)


def _decoder_kind(decoder: dict[str, Any] | None) -> tuple[bool, bool]:
    """(is byte level, strips the leading space), from the decoder part of a tokenizer.json."""
    steps = decoder.get("decoders", [decoder]) if decoder else []
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return True, False
    if "Metaspace" in kinds or "Replace" in kinds:
        strips = any(step["type"] == "Strip" and step.get("start") for step in steps)
        return False, strips or any(step.get("prepend_scheme", "never") != "never" for step in steps)
    raise TokenizerError(
        f"decoder {sorted(kinds)} is neither Llama's (byte fallback) nor GPT-2's (byte level)"
    )


def _byte_level_bytes(piece: str) -> bytes:
    """Undo GPT-2's alphabet: printable bytes stand for themselves, the rest for U+0100 and on, in order."""
    if any(character not in _BYTE_OF for character in piece):
        return piece.encode()  # an added token is plain text
    return bytes(_BYTE_OF[character] for character in piece)


def _byte_level_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()
