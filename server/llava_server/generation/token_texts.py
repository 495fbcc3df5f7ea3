r"""The text of each output token, for log probabilities.

    token       "a"   "b\xc3"   "\xa9X"   "YZ"   "</s>"      output text "abé", stop string "XYZ"
    text        "a"   "b"       "é"       ""     ""
    data        "a"   "b\xc3"   "\xa9"    ""     ""

The texts of a choice's tokens concatenate to its output text, and their data to its UTF-8 bytes. A character
that is split across tokens is in the text of the last of these tokens, while the data of each token contains
its own bytes. U+FFFD, which replaces invalid bytes, belongs to the token with the last of these bytes.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llava_wire.messages.event import TokenLogprob

__all__ = ["TokenText", "TokenTexts"]

_REPLACEMENT = "\ufffd".encode()


@dataclass(eq=False)
class TokenText:
    """A token and its part of the output text, which is empty for special tokens and within a stop string.

    ``context`` contains the bytes of an incomplete character before the token.
    """

    token: TokenLogprob
    context: bytes
    num_pending: int  # number of the token's bytes that have not been matched with the output text
    text: str = ""
    data: bytes = b""


class TokenTexts:
    """Matches the output text of one choice with the tokens that produced it."""

    def __init__(self) -> None:
        self._tokens: deque[TokenText] = deque()  # not yet returned
        self._undecoded = b""  # the bytes of an incomplete character
        self._owners: deque[TokenText] = deque()  # the token of each undecoded byte
        # Decoded characters that have not been matched: the token and the data of each of their bytes.
        self._characters: deque[list[tuple[TokenText, bytes]]] = deque()
        self._text = ""  # received but not yet matched

    def feed(
        self, tokens: Sequence[TokenLogprob], text: str, *, is_last: bool = False
    ) -> tuple[str, list[TokenText]]:
        """Add new tokens and new output text. Return the next tokens and their text.

        Tokens are held back until all their text has been received, and until the character in which they end
        is complete. If ``is_last`` is true, all tokens and all text are returned.
        """
        for token in tokens:
            self._add(token)
        self._decode(is_last=is_last)
        self._text += text
        self._match()
        num_complete = len(self._tokens) if is_last else self._count_complete()
        complete = [self._tokens.popleft() for _ in range(num_complete)]
        released = "".join(each.text for each in complete)
        if is_last and self._text:  # a worker of an older version sent text that no token contains
            released, self._text = released + self._text, ""
        return released, complete

    def _count_complete(self) -> int:
        num_complete = 0
        for index, token in enumerate(self._tokens):
            if not token.context:
                num_complete = index
            if token.num_pending:
                return num_complete
        return len(self._tokens)

    def _add(self, token: TokenLogprob) -> None:
        data = token.sampled.text
        entry = TokenText(token, context=self._undecoded, num_pending=len(data))
        self._tokens.append(entry)
        self._undecoded += data
        self._owners.extend([entry] * len(data))
        self._decode(is_last=False)

    def _decode(self, *, is_last: bool) -> None:
        characters, self._undecoded = _split_characters(self._undecoded, is_last=is_last)
        for raw, is_valid in characters:
            owners = [self._owners.popleft() for _ in raw]
            data = [bytes([byte]) for byte in raw]
            if not is_valid:
                data = [b""] * (len(raw) - 1) + [_REPLACEMENT]
            self._characters.append(list(zip(owners, data, strict=True)))

    def _match(self) -> None:
        """Match the received text with the decoded characters, one by one."""
        num_matched = min(len(self._text), len(self._characters))
        for character in self._text[:num_matched]:
            parts = self._characters.popleft()
            for owner, data in parts:
                owner.data += data
                owner.num_pending -= 1
            parts[-1][0].text += character
        self._text = self._text[num_matched:]


def _split_characters(data: bytes, *, is_last: bool) -> tuple[list[tuple[bytes, bool]], bytes]:
    """Split UTF-8 data into characters as Python's decoder does, and an incomplete character at the end.

    Each character is returned with whether it is valid. Invalid bytes that the decoder replaces with one
    U+FFFD are one character.
    """
    characters: list[tuple[bytes, bool]] = []
    num_invalid = 1
    while num_invalid:
        text, size, num_invalid = _decode_valid(data, is_last=is_last)
        characters += [(character.encode(), True) for character in text]
        if num_invalid:
            characters.append((data[size : size + num_invalid], False))
        data = data[size + num_invalid :]
    return characters, data


def _decode_valid(data: bytes, *, is_last: bool) -> tuple[str, int, int]:
    """Decode the data up to the first invalid bytes.

    Return the text, its length in bytes and the number of invalid bytes that one U+FFFD replaces.
    """
    try:
        return *codecs.utf_8_decode(data, "strict", is_last), 0
    except UnicodeDecodeError as error:
        return data[: error.start].decode(), error.start, error.end - error.start
