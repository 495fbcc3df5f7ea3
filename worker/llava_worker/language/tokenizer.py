"""The tokenizer interface that prompts, streams and grammars use, and an implementation for bytes.

User text is never encoded as special tokens: ``</s>`` or ``<image>`` in a text is treated as plain
characters. Special tokens can be added to a prompt only by ID (see ``special_id``). Decoding returns bytes,
because a token may contain only part of a character. The detokenizer assembles the characters.
``hf_tokenizer`` implements the interface for real models.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["ByteTokenizer", "Tokenizer", "TokenizerError"]


class TokenizerError(Exception):
    """The model's tokenizer is missing, unsupported or incompatible. The message gives the reason."""


class Tokenizer(Protocol):
    """The interface that all tokenizers implement.

    ``bos_token_id`` is None for models without a beginning-of-sequence token. ``image_token_id`` is the
    placeholder token for images. ``adds_bos`` is true if transformers prepends ``bos_token_id`` to every text
    for this model.
    """

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def image_token_id(self) -> int: ...
    @property
    def strips_leading_space(self) -> bool:
        """Whether the first token of a text includes a space that is not part of the text, as in Llama."""
        ...

    @property
    def max_token_bytes(self) -> int | None:
        """The maximum number of bytes of a text that one token can represent, or None if it is unlimited."""
        ...

    def encode(self, text: str, *, is_first: bool = True) -> list[int]:
        """Return the token IDs of a text, without adding special tokens, as in the original LLaVA.

        If ``is_first`` is true, the text is at the beginning of the prompt or follows an image. Otherwise, it
        follows a special token.
        """
        ...

    def encode_segment(self, text: str, *, is_first: bool) -> list[int]:
        """Return the token IDs of a segment of a prompt, encoded as in transformers.

        If ``is_first`` is true, the text is at the beginning of the prompt. Otherwise, it follows a special
        token.
        """
        ...

    def encode_special(self, token: str, *, is_first: bool) -> list[int]:
        """Return the token IDs that the original LLaVA uses for a special token. Raises TokenizerError.

        ``is_first`` has the same meaning as for ``encode``.
        """
        ...

    def special_id(self, token: str) -> int:
        """Return the ID of a special token. Raises TokenizerError if the vocabulary does not contain it."""
        ...

    def includes_white_space(self, token: str) -> bool:
        """Return whether this special token includes the white space that follows it, as in Phi-3."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, or b"" for special tokens and IDs outside the vocabulary."""
        ...

    def special_text(self, token_id: int) -> str:
        """Return the text of a special token, such as ``</s>``, or "" for other tokens and unknown IDs."""
        ...

    def special_name(self, token_id: int) -> str:
        """Return the text of a special token, such as ``</s>``, or "" for other tokens.

        An ID outside the vocabulary has the name ``token_id:ID``, as in vLLM.
        """
        ...


class ByteTokenizer:
    """A tokenizer with one token per UTF-8 byte and three special tokens, for the echo engine and tests."""

    bos_token_id: int = 256
    adds_bos: bool = True
    eos_token_id: int = 257
    image_token_id: int = 258
    strips_leading_space: bool = False
    max_token_bytes: int | None = 1

    def encode(self, text: str, *, is_first: bool = True) -> list[int]:  # noqa: ARG002
        return list(text.encode())

    def encode_segment(self, text: str, *, is_first: bool) -> list[int]:
        return self.encode(text, is_first=is_first)

    def encode_special(self, token: str, *, is_first: bool) -> list[int]:  # noqa: ARG002
        return [self.special_id(token)]

    def special_id(self, token: str) -> int:
        if token == "<image>":
            return self.image_token_id
        return self.bos_token_id if token == "<s>" else self.eos_token_id

    def includes_white_space(self, token: str) -> bool:  # noqa: ARG002
        return False

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b""

    def special_text(self, token_id: int) -> str:
        return {256: "<s>", 257: "</s>", 258: "<image>"}.get(token_id, "")

    def special_name(self, token_id: int) -> str:
        return "" if 0 <= token_id < 256 else self.special_text(token_id) or f"token_id:{token_id}"
