"""Incremental detokenization. The text contains only complete characters and no part of a stop string.

Tokens are decoded to bytes, and an incremental UTF-8 decoder buffers incomplete characters, so a character
may span several tokens. Text that may be the beginning of a stop string is held back until later tokens show
whether it is one. The output depends only on the tokens received so far, so another worker that replays the
logged tokens reaches exactly the same state.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from llava_worker.language.tokenizer import Tokenizer

__all__ = ["Detokenizer", "detokenize"]


class Detokenizer:
    """An incremental detokenizer for one response. It returns no text once ``is_stopped`` is set."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        included_stop: Sequence[str] = (),
        has_special_tokens: bool = False,
        is_continued: bool = False,
    ) -> None:
        """If ``is_continued`` is true, the tokens continue existing text, so a leading space is kept.

        The text ends before the stop string that is found, or after it if it is one of ``included_stop``. The
        text contains special tokens if ``has_special_tokens`` is true.
        """
        self._tokenizer = tokenizer
        self._included_stop = frozenset(included_stop)
        self._has_special_tokens = has_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Whether the next token with text is the first one, whose leading space is not part of the text.
        self.strips_next_space = tokenizer.strips_leading_space and not is_continued
        self._stop_strings = [text for text in stop if text]
        self._held_back = ""
        self.is_stopped = False
        self.stopped_by = ""  # the stop string that was found, or ""

    def push(self, token_id: int) -> str:
        """Return the text completed by this token, which may be empty."""
        if self.is_stopped:
            return ""
        data = self.token_bytes(token_id)
        if data and self.strips_next_space:
            self.strips_next_space = False
            data = data.removeprefix(b" ")
        return self._release(self._decoder.decode(data))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the token adds to a text, including a leading space."""
        data = self._tokenizer.token_bytes(token_id)
        if data or not self._has_special_tokens:
            return data
        return self._tokenizer.special_text(token_id).encode()

    def flush(self) -> str:
        """Return the text that was held back. Must be called at the end of the stream.

        An incomplete character is replaced by U+FFFD.
        """
        if self.is_stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held_back
        self._held_back = ""
        return text

    def _release(self, text: str) -> str:
        if not self._stop_strings or not text:
            return text
        text, self._held_back, self.stopped_by = _split(self._held_back + text, self._stop_strings)
        self.is_stopped = bool(self.stopped_by)
        return text + self.stopped_by if self.stopped_by in self._included_stop else text


def detokenize(tokenizer: Tokenizer, token_ids: Iterable[int]) -> str:
    """Return the text of all tokens, as `Detokenizer` would without stop strings."""
    data = b"".join(tokenizer.token_bytes(token_id) for token_id in token_ids)
    return (data.removeprefix(b" ") if tokenizer.strips_leading_space else data).decode(errors="replace")


def _split(text: str, stop_strings: list[str]) -> tuple[str, str, str]:
    """Split off a stop string.

    Return the text before the stop string, any text at the end that may be the beginning of a stop string,
    and the stop string that was found, or "".

    If the text contains several stop strings, the one that ends first is used. If several end at the same
    position, the longest is used. The result therefore does not depend on how the text is split into tokens.
    """
    found = [(text.find(string) + len(string), -len(string)) for string in stop_strings if string in text]
    if found:
        end, negative_length = min(found)
        return text[: end + negative_length], "", text[end + negative_length : end]
    longest = min(len(text), max(len(string) for string in stop_strings) - 1)
    for length in range(longest, 0, -1):
        if any(string.startswith(text[-length:]) for string in stop_strings):
            return text[:-length], text[-length:], ""
    return text, "", ""
