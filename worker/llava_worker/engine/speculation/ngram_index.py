"""Prompt lookup: finds the tokens that followed an earlier occurrence of a sequence's last n-gram.

Output that refers to a document or an earlier turn often repeats parts of it. Therefore, if the last two or
three tokens have occurred before, the tokens that followed them are likely to follow again.
"""

from __future__ import annotations

from llava_worker.engine.core.sequence import Sequence

__all__ = ["NgramIndex"]

NGRAM_SIZES = (3, 2)  # longest first, because drafts after a longer match are accepted more often

_IMAGE = -1  # replaces placeholder tokens, which are the same for all images


class NgramIndex:
    """An index of the n-grams of one sequence, updated in constant time per token."""

    def __init__(self, sequence: Sequence) -> None:
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after it
        prompt = sequence.prompt_ids.copy()
        for image in sequence.images:
            prompt[image.start : image.end] = [_IMAGE] * image.length
        for token_id in prompt:
            self._push(token_id)
        self._num_prompt = len(prompt)

    def propose(self, output_ids: list[int], max_tokens: int) -> list[int]:
        """Return up to ``max_tokens`` draft tokens, or none if the last two tokens have not occurred before.

        ``output_ids`` contains the whole output generated so far.
        """
        for token_id in output_ids[len(self._tokens) - self._num_prompt :]:
            self._push(token_id)
        for size in NGRAM_SIZES:
            index = self._next_of.get(tuple(self._tokens[-size:]))
            if index is not None:
                return self._copy(index, max_tokens)
        return []

    def _push(self, token_id: int) -> None:
        """Append a token and record that it follows the n-grams that end right before it."""
        for size in NGRAM_SIZES:
            ngram = tuple(self._tokens[-size:])
            if len(ngram) == size and _IMAGE not in ngram and token_id != _IMAGE:
                self._next_of[ngram] = len(self._tokens)
        self._tokens.append(token_id)

    def _copy(self, start: int, max_tokens: int) -> list[int]:
        """Return the tokens starting at ``start``, up to the next image.

        If the end of the sequence is reached before ``max_tokens``, the copied tokens are repeated.
        """
        copied: list[int] = []
        num_tokens = len(self._tokens)
        for index in range(start, start + max_tokens):
            token_id = self._tokens[index] if index < num_tokens else copied[index - num_tokens]
            if token_id == _IMAGE:
                break
            copied.append(token_id)
        return copied
