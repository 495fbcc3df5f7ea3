"""The prefix cache: an index of KV cache blocks, keyed by their content and all preceding tokens.

The content of a block is a tuple with one number per token. Each full block has a hash key that covers the
block and all blocks before it:

    key[i] = hash(key[i - 1], content of block i)      key[-1] = hash(scope)

Blocks with the same hash key therefore contain the same attention keys and values. Blocks are never shared
between different scopes. Only full blocks have a hash key. A partial block is always the last in its chain.
Its rows can be copied like those of any other block.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from hashlib import blake2b

from llava_worker.engine.core.sequence import Sequence

__all__ = ["Content", "PrefixCache", "block_key", "content_of", "num_common", "root_key"]

Content = tuple[int, ...]

_POSITION_BITS = 32  # enough for any position within an image


def root_key(scope: str) -> bytes:
    """Return the parent key for blocks at the start of a prompt in this scope."""
    return blake2b(scope.encode(), digest_size=32).digest()


def block_key(parent: bytes, content: Content) -> bytes:
    """Return the hash key of a full block."""
    return blake2b(parent + repr(content).encode(), digest_size=32).digest()


def content_of(sequence: Sequence, start: int, end: int) -> Content:
    """Return the numbers that represent tokens [start, end).

    A text token is represented by its ID, and an image token by a negative number that combines the hash of
    the image with the position of the token in the image.
    """
    numbers = sequence.token_ids(start, end)
    for image in sequence.images_within(start, end):
        digest = int.from_bytes(blake2b(image.content.encode(), digest_size=16).digest(), "big")
        for position in range(max(start, image.start), min(end, image.end)):
            numbers[position - start] = -1 - (digest << _POSITION_BITS | position - image.start)
    return tuple(numbers)


def num_common(one: Content, other: Content) -> int:
    """Return the length of the common prefix of the two contents."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    return next(index for index in range(limit) if one[index] != other[index])


class PrefixCache:
    """An index of all blocks whose content is known, whether or not they are in use."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._block_of: dict[bytes, int] = {}
        # The blocks that follow each key, sorted by content. The longest match is therefore next to the
        # insertion point.
        self._children: dict[bytes, list[tuple[Content, int]]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._entries

    def lookup(self, key: bytes) -> int | None:
        """Return the full block with this key, or None."""
        return self._block_of.get(key)

    def longest_match(self, parent: bytes, content: Content) -> tuple[int, int]:
        """Find the block after ``parent`` that shares the longest prefix with ``content``.

        Returns the block and the number of matching tokens, or (-1, 0) if not even the first token matches.
        """
        children = self._children.get(parent, [])
        index = bisect_left(children, (content, -1))
        neighbors = children[max(0, index - 1) : index + 1]
        found = [(num_common(known, content), block) for known, block in neighbors]
        num_rows, block = max(found, default=(0, -1))
        return (block, num_rows) if num_rows else (-1, 0)

    def insert(self, block: int, parent: bytes, content: Content, key: bytes | None = None) -> None:
        """Add a block and its content. ``key`` must be set if the block is full.

        Does nothing if the cache already contains another block with this content.
        """
        is_known = key in self._block_of if key else self.longest_match(parent, content)[1] == len(content)
        if is_known or block in self._entries:
            return
        self._entries[block] = _Entry(parent, content, key)
        insort(self._children.setdefault(parent, []), (content, block))
        if key is not None:
            self._block_of[key] = block

    def remove(self, block: int) -> None:
        """Remove a block whose content is about to change. Does nothing if the block is not in the cache."""
        entry = self._entries.pop(block, None)
        if entry is None:
            return
        children = self._children[entry.parent]
        del children[bisect_left(children, (entry.content, block))]
        if not children:
            del self._children[entry.parent]
        if entry.key is not None:
            del self._block_of[entry.key]

    def inconsistency(self) -> str | None:
        """Return a description of the first inconsistency, or None."""
        full = {entry.key: block for block, entry in self._entries.items() if entry.key is not None}
        if full != self._block_of:
            return "The mapping from hash keys to blocks does not match the entries."
        children = {block: (parent, content) for parent, content, block in self._all_children()}
        if children != {block: (entry.parent, entry.content) for block, entry in self._entries.items()}:
            return "The child blocks of the parent keys do not match the entries."
        if any(not siblings or siblings != sorted(siblings) for siblings in self._children.values()):
            return "The child blocks of a parent key are not sorted."
        return None

    def _all_children(self) -> list[tuple[bytes, Content, int]]:
        return [(parent, *child) for parent, children in self._children.items() for child in children]


@dataclass(frozen=True, slots=True)
class _Entry:
    parent: bytes
    content: Content
    key: bytes | None
