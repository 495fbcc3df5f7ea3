"""A model's tokenizer, read from ``tokenizer.json``, ``tokenizer.model`` or ``vocab.json`` in its folder.

With vocabularies like Llama's, a space is prepended to a text, the prefix ``▁``. ``encode`` adds it to the
same texts as transformers 4.37.2, which the original LLaVA uses. ``encode_segment`` adds it to the same texts
as transformers 5.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from llava_worker.language.byte_level_files import (
    BYTE_LEVEL_FILES,
    has_byte_level_files,
    read_byte_level_files,
)
from llava_worker.language.sentencepiece import read_sentencepiece
from llava_worker.language.tokenizer import TokenizerError
from llava_worker.model.config.untrusted_file import read_json_object

__all__ = ["HFTokenizer", "has_tokenizer", "tokenizer_files"]

_LLAMA_TOKENS = ("<unk>", "<s>", "</s>")
_LLAMA_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>"}  # of transformers' classes for Llama's tokenizer
# Special even if tokenizer.json declares them as ordinary added tokens, which match user text.
_IMAGE_MARKS = ("<image>", "<im_patch>", "<im_start>", "<im_end>")
_EXACT_NORMALIZERS = ("Prepend", "Replace")  # Llama's, which replace a space with "▁"
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")
_TOKEN_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class _DeclaredToken(msgspec.Struct):
    id: int
    content: str


class _TokenizerFile(msgspec.Struct):
    """The part of tokenizer.json that `_check_added_tokens` reads. Decoding skips the rest."""

    added_tokens: list[_DeclaredToken] = []


class HFTokenizer:
    """A byte-fallback tokenizer (Llama) or a byte-level tokenizer (GPT-2)."""

    def __init__(
        self,
        folder: Path,
        *,
        image_token_id: int | None = None,
        vocab_size: int | None = None,
        adds_bos: bool | None = None,
    ) -> None:
        """Load the tokenizer. Raises TokenizerError, or CheckpointError if a configuration is invalid.

        ``image_token_id`` defaults to the ID of ``<image>``, or to 0 if the vocabulary does not contain it.
        ``vocab_size`` is the number of the model's embeddings. If it is set, the IDs of all texts must be
        lower. Special tokens may have higher IDs, because some published models lack a few of them.
        ``adds_bos`` overrides the setting in tokenizer_config.json.
        """
        config = read_json_object(folder / "tokenizer_config.json")
        self._tokenizer = _load(folder, config)
        self._tokenizer.encode_special_tokens = True
        self._special_tokens = {
            token_id: token
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        description = json.loads(self._tokenizer.to_str())
        self._prefix_scheme = _prefix_scheme(description)
        self._bare_tokenizer = _without_prefix(self._tokenizer, description)
        self._is_byte_level, self.strips_leading_space = _read_decoder(description["decoder"])
        self._bytes: dict[int, bytes] = {}  # keyed by token ID
        self.max_token_bytes = self._max_token_bytes(description)
        named = {**read_json_object(folder / "special_tokens_map.json"), **config}
        self.bos_token, self.eos_token = (
            _content(named.get(name, self._default(name))) for name in ("bos_token", "eos_token")
        )
        self.bos_token_id = None if self.bos_token is None else self.special_id(self.bos_token)
        self._is_legacy = self._is_byte_level or _is_legacy(folder, config, self._prefix_scheme)
        self._named_tokens = _named_tokens(folder, config)
        if adds_bos is None:
            adds_bos = config.get("add_bos_token") is not False
        self.adds_bos = adds_bos and self.bos_token_id is not None
        if image_token_id is None:
            image_token_id = self._tokenizer.token_to_id("<image>") or 0
        self.image_token_id = image_token_id
        self._check_typed_special_tokens()
        if vocab_size is not None:
            self._check_ids(vocab_size)

    @property
    def special_tokens(self) -> list[str]:
        """The names of all special tokens."""
        return [token.content for token in self._special_tokens.values()]

    def encode(self, text: str, *, is_first: bool = True) -> list[int]:
        """Implement ``Tokenizer.encode``.

        If ``"legacy": true`` applies, every text has the prefix, unless the vocabulary has none. If
        ``"legacy": false`` applies, only texts that do not follow a special token have the prefix, and they
        have it with every vocabulary.
        """
        has_prefix = self._prefix_scheme != "never" if self._is_legacy else is_first
        return _ids(self._bare_tokenizer, f"▁{text}" if has_prefix and text else text)

    def encode_segment(self, text: str, *, is_first: bool) -> list[int]:
        is_bare = self._prefix_scheme == "first" and not is_first
        return _ids(self._bare_tokenizer if is_bare else self._tokenizer, text)

    def encode_special(self, token: str, *, is_first: bool) -> list[int]:
        """Implement ``Tokenizer.encode_special``.

        If ``"legacy": false`` applies, a prefix precedes a token at the beginning of a text, unless the
        configuration names the token, for example as the ``eos_token``.
        """
        has_prefix = is_first and not self._is_legacy and token not in self._named_tokens
        return [*(_ids(self._bare_tokenizer, "▁") if has_prefix else []), self.special_id(token)]

    def special_id(self, token: str) -> int:
        token_id: int | None = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise TokenizerError(
                f"The tokenizer has no special token {token!r}, which the prompt requires. Use another "
                "--conversation."
            )
        return token_id

    def includes_white_space(self, token: str) -> bool:
        special = self._special_tokens.get(self.special_id(token))
        return special is not None and special.rstrip

    def token_bytes(self, token_id: int) -> bytes:
        if token_id not in self._bytes:
            self._bytes[token_id] = self._read_bytes(token_id)
        return self._bytes[token_id]

    def special_text(self, token_id: int) -> str:
        return self._special_tokens[token_id].content if token_id in self._special_tokens else ""

    def special_name(self, token_id: int) -> str:
        if token_id in self._special_tokens:
            return self.special_text(token_id)
        return "" if self._tokenizer.id_to_token(token_id) is not None else f"token_id:{token_id}"

    def _max_token_bytes(self, description: dict[str, Any]) -> int | None:
        """Return ``Tokenizer.max_token_bytes``. It is unlimited if a token can represent any long text.

        This is possible if the normalizer or an added token drops characters, or if several unknown
        characters become one token.
        """
        is_complete = self._is_byte_level or bool(description["model"].get("byte_fallback"))
        is_exact = all(step["type"] in _EXACT_NORMALIZERS for step in _normalizers(description))
        strips = any(token["lstrip"] or token["rstrip"] for token in description["added_tokens"])
        if not is_complete or not is_exact or strips:
            return None
        return max(len(self._read_bytes(token_id)) for token_id in self._tokenizer.get_vocab().values())

    def _read_bytes(self, token_id: int) -> bytes:
        piece: str | None = self._tokenizer.id_to_token(token_id)
        if piece is None or token_id in self._special_tokens:
            return b""
        if self._is_byte_level:
            return _byte_level_bytes(piece)
        if _BYTE_PIECE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def _default(self, name: str) -> str | None:
        """Return the token that has this role in Llama's tokenizer, if this is such a tokenizer."""
        token = _LLAMA_DEFAULTS[name]
        is_llama = not self._is_byte_level and self._tokenizer.token_to_id(token) is not None
        return token if is_llama else None

    def _check_ids(self, vocab_size: int) -> None:
        ids = self._tokenizer.get_vocab(with_added_tokens=False)
        token, token_id = max(ids.items(), key=lambda item: item[1], default=("", 0))
        if token_id >= vocab_size:
            raise TokenizerError(
                f"The tokenizer's token {token!r} has the ID {token_id}, but the model has only {vocab_size} "
                "embeddings. Use the tokenizer that belongs to the model."
            )

    def _check_typed_special_tokens(self) -> None:
        for token_id, token in self._special_tokens.items():
            if token_id in self.encode(token.content):
                text = token.content
                raise TokenizerError(
                    f"The tokenizer encodes the plain text {text!r} as special token {token_id}, so requests "
                    "could inject it. This tokenizer is not supported."
                )


def has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "tokenizer.model")
    return any((folder / name).exists() for name in names) or has_byte_level_files(folder)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files in the folder that the tokenizer depends on."""
    formats = (("tokenizer.json",), ("tokenizer.model",), BYTE_LEVEL_FILES)
    used = next((names for names in formats if (folder / names[0]).is_file()), ())
    paths = [folder / name for name in (*used, "added_tokens.json", "tokenizer_config.json")]
    return [path for path in paths if path.is_file()]


def _load(folder: Path, config: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not has_tokenizer(folder):
        raise TokenizerError(
            f"{folder} contains no tokenizer: neither tokenizer.json nor tokenizer.model, nor vocab.json "
            "with merges.txt. Copy these files from the folder of the original checkpoint."
        )
    if not path.exists() and not (folder / "tokenizer.model").exists():
        return read_byte_level_files(folder)
    if not path.exists():
        scheme = "always" if config.get("legacy") is True else "first"  # as in transformers 5
        return read_sentencepiece(folder / "tokenizer.model", prefix_scheme=scheme)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises a plain Exception if it cannot read a file
        raise TokenizerError(f"The tokenizer file {path} could not be read: {error}") from error
    _check_added_tokens(path, tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    marks = [token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in marks if mark in _IMAGE_MARKS]
    )
    return tokenizer


def _check_added_tokens(path: Path, tokenizer: Tokenizer) -> None:
    """Check that each added token has the ID that the file declares.

    The tokenizers library ignores the declared ID and uses the vocabulary's size instead. If the vocabulary
    has unused IDs, this can be the ID of another token.
    """
    for token in msgspec.json.decode(path.read_bytes(), type=_TokenizerFile).added_tokens:
        token_id = tokenizer.token_to_id(token.content)
        if token.content and token_id != token.id:  # the library ignores empty tokens
            raise TokenizerError(
                f"{path} is invalid. The added token {token.content!r} has the ID {token.id}, but the "
                f"next ID after the vocabulary is {token_id}. Add the token to model.vocab in the file."
            )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    # Unlike encode, this method releases the interpreter's lock, so that a long text does not stop the event
    # loop and the engine for seconds. It also skips the offsets, which take most of the time.
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def _prefix_scheme(description: dict[str, Any]) -> str:
    """Return which texts get a prefix: "always" (all), "first" (the first in a prompt) or "never"."""
    if any(step["type"] == "Prepend" for step in _normalizers(description)):
        return "always"
    pre_tokenizer = description["pre_tokenizer"] or {}
    is_metaspace = pre_tokenizer.get("type") == "Metaspace"
    return str(pre_tokenizer["prepend_scheme"]) if is_metaspace else "never"


def _without_prefix(tokenizer: Tokenizer, description: dict[str, Any]) -> Tokenizer:
    """Return a tokenizer that adds no prefix to any text. It is usually a copy."""
    if _prefix_scheme(description) == "never":
        return tokenizer
    changes: dict[str, Any] = {}
    if steps := _normalizers(description):
        steps = [step for step in steps if step["type"] != "Prepend"]
        changes["normalizer"] = {"type": "Sequence", "normalizers": steps}
    if (pre_tokenizer := description["pre_tokenizer"]) and pre_tokenizer["type"] == "Metaspace":
        changes["pre_tokenizer"] = {**pre_tokenizer, "prepend_scheme": "never"}
    copy: Tokenizer = Tokenizer.from_str(json.dumps({**description, **changes}))
    copy.encode_special_tokens = True
    return copy


def _normalizers(description: dict[str, Any]) -> list[dict[str, Any]]:
    normalizer = description["normalizer"]
    return list(normalizer.get("normalizers", [normalizer])) if normalizer else []


def _is_legacy(folder: Path, config: dict[str, Any], prefix_scheme: str) -> bool:
    """Return whether the original LLaVA uses the behavior of ``"legacy": true`` for this tokenizer.

    It loads Mistral models with a fast tokenizer, which ignores the setting. Files written by transformers 5
    lack the setting, but the scheme in their tokenizer.json is "first" only if it was false.
    """
    model_config = read_json_object(folder / "config.json")
    model_config = model_config.get("text_config") or model_config
    if "mistral" in str(model_config.get("model_type")):
        return True
    if config.get("legacy") is None and not (folder / "tokenizer.model").is_file():
        return prefix_scheme != "first"
    return config.get("legacy") is not False


def _named_tokens(folder: Path, config: dict[str, Any]) -> set[str]:
    """Return the special tokens that the configuration names, for example as the ``eos_token``."""
    names = set(_LLAMA_TOKENS)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        entries = config if name == "tokenizer_config.json" else read_json_object(folder / name)
        additional = entries.get("additional_special_tokens") or []
        if not isinstance(additional, list):
            path = folder / name
            raise TokenizerError(f"{path} is invalid. additional_special_tokens must be a list.")
        contents = [_content(token) for token in [*map(entries.get, _TOKEN_ROLES), *additional]]
        names.update(content for content in contents if content is not None)
    return names


def _content(token: object) -> str | None:
    """Return the text of a special token, which is a string or an object with a ``content`` field."""
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
