"""The text of one stream, token by token: whole characters only, and never a part of a stop string.

Tokens are bytes here, so a character that takes several tokens needs no special case: an incremental UTF-8
decoder keeps its unfinished bytes. Text that may be the beginning of a stop string is held back until it
is clear what it is. Everything is a function of the tokens so far and the same for any way of cutting them
into pushes: another worker that feeds the logged tokens stands exactly where the first one stood.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from llava_worker.language.tokenizer import TextTokenizer

__all__ = ["Detokenizer"]


class Detokenizer:
    """Push tokens, get the text that is certain. After ``is_stopped`` turns True nothing more comes."""

    def __init__(
        self, tokenizer: TextTokenizer, stop: Sequence[str] = (), *, is_continued: bool = False
    ) -> None:
        """``is_continued``: the tokens go on from a text before them, so that a space at their beginning is
        one."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.strips_leading_space and not is_continued
        self._stop = [text for text in stop if text]
        self._held = ""
        self.is_stopped = False
        self.stopped_by = ""  # the stop string that was found

    def push(self, token_id: int) -> str:
        """The text that this token makes certain, often empty. A stop string found is not part of it."""
        if self.is_stopped:
            return ""
        return self._release(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """What was held back, for a stream that ends here; unfinished bytes become U+FFFD."""
        if self.is_stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if text and self._at_start:
            self._at_start = False
            text = text.removeprefix(" ")
        if not self._stop or not text:
            return text
        sure, self._held, self.stopped_by = _split(self._held + text, self._stop)
        self.is_stopped = bool(self.stopped_by)
        return sure


def _split(text: str, stop: list[str]) -> tuple[str, str, str]:
    """(text before any stop string, text that may begin one, the one that was found).

    Of several the one that ends first counts, then the longest: that does not depend on how the text came.
    """
    found = [(text.find(one) + len(one), -len(one)) for one in stop if one in text]
    if found:
        end, negative_length = min(found)
        return text[: end + negative_length], "", text[end + negative_length : end]
    longest = min(len(text), max(len(one) for one in stop) - 1)
    for length in range(longest, 0, -1):
        if any(one.startswith(text[-length:]) for one in stop):
            return text[:-length], text[-length:], ""
    return text, "", ""
