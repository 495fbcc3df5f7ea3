"""Prompt lookup: finds the tokens that followed an earlier occurrence of a sequence's last n-gram.

Output that refers to a document or an earlier turn often repeats parts of it. Therefore, if the last two or
three tokens have occurred before, the tokens that followed them are likely to follow again.
"""

from __future__ import annotations

from llava_worker.engine.core.sequence import Sequence

__all__ = ["NgramIndex"]

_IMAGE = -1  # replaces placeholder tokens, which are the same for all images
_NONE = -1  # there is no n-gram, because there are too few tokens after the last image
_BITS = 32  # enough for any token ID


class NgramIndex:
    """An index of the n-grams of one sequence, updated in constant time per token."""

    def __init__(self, sequence: Sequence) -> None:
        self._tokens: list[int] = []
        # For each n-gram size, the index of the token after each n-gram. Keys are integers instead of tuples,
        # because the garbage collector would have to visit tuples.
        self._after_three: dict[int, int] = {}
        self._after_two: dict[int, int] = {}
        self._last_three = self._last_two = _NONE  # keys of the last n-grams
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
        index = self._after_three.get(self._last_three)  # drafts after a longer match are accepted more often
        if index is None:
            index = self._after_two.get(self._last_two)
        return [] if index is None else self._copy(index, max_tokens)

    def _push(self, token_id: int) -> None:
        """Append a token and record that it follows the n-grams that end right before it."""
        tokens = self._tokens
        if token_id == _IMAGE:
            self._last_two = self._last_three = _NONE
        else:
            if self._last_two != _NONE:
                self._after_two[self._last_two] = len(tokens)
            if self._last_three != _NONE:
                self._after_three[self._last_three] = len(tokens)
            two = self._last_two
            is_pair = bool(tokens) and tokens[-1] != _IMAGE
            self._last_two = tokens[-1] << _BITS | token_id if is_pair else _NONE
            self._last_three = two << _BITS | token_id if two != _NONE else _NONE
        tokens.append(token_id)

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
