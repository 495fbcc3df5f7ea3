"""Bad words: token sequences that must not occur in the output.

As in vLLM, only the last token of a sequence is excluded, and only if the output ends with the tokens before
it. Tokens of the prompt are not considered.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

__all__ = ["BadWords"]


class BadWords:
    """The bad words of one sequence."""

    def __init__(self, words: Items[tuple[int, ...]]) -> None:
        self._single_ids = np.array(sorted({word[0] for word in words if len(word) == 1}), dtype=np.int64)
        self._longer = [(list(word[:-1]), word[-1]) for word in words if len(word) > 1]

    def last_ids(self, output_ids: list[int]) -> NDArray[np.int64]:
        """Return the tokens that would complete a bad word if they followed ``output_ids``."""
        found = [last for prefix, last in self._longer if output_ids[-len(prefix) :] == prefix]
        return np.append(self._single_ids, np.array(found, dtype=np.int64)) if found else self._single_ids
