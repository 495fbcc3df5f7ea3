"""Where a sequence's last words stood before, and what followed them there: prompt lookup.

Answers about a text, a picture's text or an earlier turn repeat much of what the prompt says. The words that
followed the same two or three words last time are then a good guess at the words to come.
"""

from __future__ import annotations

from llava_worker.engine.core.sequence import Sequence

__all__ = ["Lookup"]

NGRAM_SIZES = (3, 2)  # tokens; longest first, since a longer match is right more often

_PICTURE = -1  # stands for every placeholder: it says nothing of what the picture shows


class Lookup:
    """An index of the sequence's n-grams, brought up to date at a constant price a token."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}  # n-gram: where its latest occurrence was followed
        prompt = sequence.prompt_ids.copy()
        for image in sequence.images:
            prompt[image.start : image.end] = [_PICTURE] * image.length
        for token_id in prompt:
            self._push(token_id)

    def propose(self, most: int) -> list[int]:
        """At most ``most`` tokens that may follow; none where the last two tokens never stood together."""
        for token_id in self._sequence.output_ids[len(self._tokens) - len(self._sequence.prompt_ids) :]:
            self._push(token_id)
        for size in NGRAM_SIZES:
            place = self._next_of.get(tuple(self._tokens[-size:]))
            if place is not None:
                return self._copy(place, most)
        return []

    def _push(self, token_id: int) -> None:
        """The n-grams before the token get it as what follows; the one it ends has nothing to offer yet."""
        for size in NGRAM_SIZES:
            gram = tuple(self._tokens[-size:])
            if len(gram) == size and _PICTURE not in gram and token_id != _PICTURE:
                self._next_of[gram] = len(self._tokens)
        self._tokens.append(token_id)

    def _copy(self, place: int, most: int) -> list[int]:
        """What stands from ``place`` on, up to a picture; beyond the end the copy goes on with itself."""
        copied: list[int] = []
        num_tokens = len(self._tokens)
        for index in range(place, place + most):
            token_id = self._tokens[index] if index < num_tokens else copied[index - num_tokens]
            if token_id == _PICTURE:
                break
            copied.append(token_id)
        return copied
