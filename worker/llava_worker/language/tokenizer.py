"""Text to token ids and token ids to bytes: what prompts, streams and grammars need of a tokenizer.

Text typed by a user never becomes a special token: ``</s>`` or ``<image>`` in a text are those characters.
Special ids enter a prompt only by name, through ``special_id``. Decoding returns bytes, not text, because a
token may hold a part of a character; the detokenizer assembles characters.
The tokenizers of models are in ``hf_tokenizer``.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["ByteTokenizer", "Tokenizer", "TokenizerError"]


class TokenizerError(Exception):
    """The model's folder has no tokenizer that this worker can use. The message says why."""


class Tokenizer(Protocol):
    """``bos_token_id`` is None for models without one. ``image_token_id`` fills the positions of images.

    ``adds_bos``: transformers puts ``bos_token_id`` before every text of this model.
    """

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def image_token_id(self) -> int: ...
    @property
    def strips_leading_space(self) -> bool:
        """Whether the first token of a text carries a space that is not part of the text (Llama's scheme)."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of this text alone, without special ids, as the original's tokenizer does."""
        ...

    def encode_segment(self, text: str, *, is_first: bool) -> list[int]:
        """Return the ids of a text at the beginning of a prompt or after a special token, as transformers
        does."""
        ...

    def special_id(self, token: str) -> int:
        """Return the id of a special token. Raises TokenizerError if the vocabulary has no such token."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token adds to the text: nothing for special tokens and ids outside the vocabulary."""
        ...


class ByteTokenizer:
    """One token per byte of UTF-8, and three special ids. Used by the echo engine and in tests."""

    bos_token_id: int = 256
    adds_bos: bool = True
    eos_token_id: int = 257
    image_token_id: int = 258
    strips_leading_space: bool = False

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_segment(self, text: str, *, is_first: bool) -> list[int]:  # noqa: ARG002
        return self.encode(text)

    def special_id(self, token: str) -> int:
        if token == "<image>":
            return self.image_token_id
        return self.bos_token_id if token == "<s>" else self.eos_token_id

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b""
