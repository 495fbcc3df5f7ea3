"""Text to token ids and token ids to bytes: all that prompts, streams and grammars need of a tokenizer.

What a user types never becomes a special token: ``</s>`` or ``<image>`` in a text are those characters.
Special ids enter a prompt only by name, through ``special_id``. The way back is bytes, not text, because a
token may hold a part of a character; the detokenizer puts the characters together.
Models' own tokenizers are in ``file_tokenizer``.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["ByteTokenizer", "TextTokenizer", "TokenizerError"]


class TokenizerError(Exception):
    """The model's folder has no tokenizer that this worker can use; the message says why."""


class TextTokenizer(Protocol):
    """``bos_id`` is None for models that begin without one. ``image_id`` fills the places of pictures.

    ``adds_bos``: transformers puts ``bos_id`` before a text of this model unasked.
    """

    @property
    def bos_id(self) -> int | None: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def image_id(self) -> int: ...
    @property
    def strips_leading_space(self) -> bool:
        """Whether the first piece of a text carries a space that is not part of it (Llama's scheme)."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of this text taken alone, without special ids: those of the original's tokenizer."""
        ...

    def encode_part(self, text: str, *, is_first: bool) -> list[int]:
        """The ids of this text between special tokens, or at the beginning, as transformers cuts a text."""
        ...

    def special_id(self, token: str) -> int:
        """The id of a special token. Raises TokenizerError if the vocabulary has no such token."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text; empty for special tokens and for ids outside the vocabulary."""
        ...


class ByteTokenizer:
    """One token per byte of UTF-8, then three special ids: for the echo engine and for tests."""

    bos_id: int = 256
    adds_bos: bool = True
    eos_id: int = 257
    image_id: int = 258
    strips_leading_space: bool = False

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_part(self, text: str, *, is_first: bool) -> list[int]:  # noqa: ARG002
        return self.encode(text)

    def special_id(self, token: str) -> int:
        if token == "<image>":
            return self.image_id
        return self.bos_id if token == "<s>" else self.eos_id

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b""
