"""A model's tokenizer, read from ``tokenizer.json`` or ``tokenizer.model`` in the model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from llava_worker.language.sentencepiece import read_sentencepiece
from llava_worker.language.tokenizer import TokenizerError

__all__ = ["HFTokenizer", "has_tokenizer", "tokenizer_files"]


class HFTokenizer:
    """A byte-fallback tokenizer (Llama) or a byte-level tokenizer (GPT-2, only from ``tokenizer.json``)."""

    def __init__(self, folder: Path, *, image_token_id: int | None = None) -> None:
        """Load the tokenizer. Raises TokenizerError.

        ``image_token_id`` defaults to the ID of ``<image>``, or to 0 if the vocabulary does not contain it.
        """
        self._tokenizer = _load(folder)
        self._tokenizer.encode_special_tokens = True
        self._special_tokens = {
            token_id: token
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._prefix_scheme = _prefix_scheme(self._tokenizer)
        self._segment_tokenizer = _segment_tokenizer(self._tokenizer, self._prefix_scheme)
        decoder = json.loads(self._tokenizer.to_str())["decoder"]
        self._is_byte_level, self.strips_leading_space = _read_decoder(decoder)
        self._bytes: dict[int, bytes] = {}  # keyed by token ID
        config = _read_config(folder / "tokenizer_config.json")
        self.bos_token, self.eos_token = _token_name(config, "bos_token"), _token_name(config, "eos_token")
        self.bos_token_id = None if self.bos_token is None else self.special_id(self.bos_token)
        self.adds_bos = self.bos_token_id is not None and config.get("add_bos_token") is not False
        if image_token_id is None:
            image_token_id = self._tokenizer.token_to_id("<image>") or 0
        self.image_token_id = image_token_id
        self._check_typed_special_tokens()

    @property
    def special_tokens(self) -> list[str]:
        """The names of all special tokens."""
        return [token.content for token in self._special_tokens.values()]

    def encode(self, text: str) -> list[int]:
        if self._prefix_scheme != "never" and text.startswith((" ", "▁")):
            text = f" {text}"  # SentencePiece prepends a space even if the text begins with one
        return _ids(self._tokenizer, text)

    def encode_segment(self, text: str, *, is_first: bool) -> list[int]:
        return _ids(self._tokenizer if is_first else self._segment_tokenizer, text)

    def special_id(self, token: str) -> int:
        token_id: int | None = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise TokenizerError(
                f"The tokenizer has no special token {token!r}, which the prompt requires. Use another "
                "--conversation."
            )
        return token_id

    def token_bytes(self, token_id: int) -> bytes:
        if token_id not in self._bytes:
            self._bytes[token_id] = self._read_bytes(token_id)
        return self._bytes[token_id]

    def _read_bytes(self, token_id: int) -> bytes:
        piece: str | None = self._tokenizer.id_to_token(token_id)
        if piece is None or token_id in self._special_tokens:
            return b""
        if self._is_byte_level:
            return _byte_level_bytes(piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def _check_typed_special_tokens(self) -> None:
        for token_id, token in self._special_tokens.items():
            if token_id in self.encode(token.content):
                text = token.content
                raise TokenizerError(
                    f"The tokenizer encodes the plain text {text!r} as special token {token_id}, so requests "
                    "could inject it. This tokenizer is not supported."
                )


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files in the folder that the tokenizer depends on."""
    vocabulary = folder / "tokenizer.json"
    if not vocabulary.is_file():
        vocabulary = folder / "tokenizer.model"
    return [path for path in (vocabulary, folder / "tokenizer_config.json") if path.is_file()]


def _load(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not has_tokenizer(folder):
        raise TokenizerError(f"Neither tokenizer.json nor tokenizer.model exists in {folder}.")
    if not path.is_file():
        return read_sentencepiece(folder / "tokenizer.model")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises a plain Exception if it cannot read a file
        raise TokenizerError(f"The tokenizer file {path} could not be read: {error}") from error


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _prefix_scheme(tokenizer: Tokenizer) -> str:
    """Return the pre-tokenizer's scheme for prepending a space to segments: "always", "first" or "never"."""
    pre_tokenizer = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    is_metaspace = pre_tokenizer.get("type") == "Metaspace"
    return str(pre_tokenizer["prepend_scheme"]) if is_metaspace else "never"


def _segment_tokenizer(tokenizer: Tokenizer, prefix_scheme: str) -> Tokenizer:
    """Return the tokenizer for segments after the first, which is usually the same tokenizer."""
    if prefix_scheme != "first":
        return tokenizer
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    metaspace = json.loads(tokenizer.to_str())["pre_tokenizer"]
    copy.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=metaspace["replacement"], prepend_scheme="never", split=metaspace["split"]
    )
    return copy


def _read_config(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def _token_name(config: dict[str, Any], name: str) -> str | None:
    """Return a special token from tokenizer_config.json (a string or an object with a ``content`` field)."""
    token = config.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else str(content)


def _read_decoder(decoder: dict[str, Any] | None) -> tuple[bool, bool]:
    """Return whether the decoder in tokenizer.json is byte-level and whether it strips the leading space."""
    steps = decoder.get("decoders", [decoder]) if decoder else []
    types = {step["type"] for step in steps}
    if "ByteLevel" in types:
        return True, False
    if "Metaspace" in types or "Replace" in types:
        strips = any(step["type"] == "Strip" and step.get("start") for step in steps)
        return False, strips or any(step.get("prepend_scheme", "never") != "never" for step in steps)
    decoder_types = ", ".join(sorted(types)) or "none"
    raise TokenizerError(
        f"The tokenizer's decoder ({decoder_types}) is not supported. It must use byte fallback, like "
        "Llama's, or be byte-level, like GPT-2's."
    )


def _byte_level_bytes(piece: str) -> bytes:
    """Decode GPT-2's alphabet: printable bytes map to themselves, all other bytes to U+0100 and above."""
    if any(character not in _BYTE_OF for character in piece):
        return piece.encode()  # added tokens are stored as plain text
    return bytes(_BYTE_OF[character] for character in piece)


def _byte_level_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()
