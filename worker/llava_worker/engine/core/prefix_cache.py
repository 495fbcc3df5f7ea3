"""The prefix cache: the contents of KV cache blocks, found by the tokens before them.

The content of a block is a number for each token whose keys and values it holds. The tokens before a block
have a key, which chains over all full blocks from the beginning:

    key[i] = hash(key[i - 1], content of block i)      key[-1] = hash(scope)

Equal keys therefore mean equal keys and values, and two scopes never share. Only a full block has a key. A
partial block ends its chain, but its first rows can be copied like those of any other block.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from hashlib import blake2b

from llava_worker.engine.core.sequence import Sequence

__all__ = ["Content", "PrefixCache", "block_key", "content_of", "num_common", "root_key"]

Content = tuple[int, ...]

_POSITION_BITS = 32  # more than an image has tokens


def root_key(scope: str) -> bytes:
    """The key before the first block."""
    return blake2b(scope.encode(), digest_size=32).digest()


def block_key(parent: bytes, content: Content) -> bytes:
    """The key of a full block."""
    return blake2b(parent + repr(content).encode(), digest_size=32).digest()


def content_of(sequence: Sequence, start: int, end: int) -> Content:
    """The content of tokens [start, end): a text token's id, or a negative number made of an image's content
    and the position in it. Parts of images are distinguished by what the image shows."""
    numbers = sequence.token_ids(start, end)
    for image in sequence.images_within(start, end):
        digest = int.from_bytes(blake2b(image.content.encode(), digest_size=16).digest(), "big")
        for position in range(max(start, image.start), min(end, image.end)):
            numbers[position - start] = -1 - (digest << _POSITION_BITS | position - image.start)
    return tuple(numbers)


def num_common(one: Content, other: Content) -> int:
    """Length of the common prefix."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    return next(index for index in range(limit) if one[index] != other[index])


class PrefixCache:
    """The blocks with known content. Does not know which of them are in use."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._block_of: dict[bytes, int] = {}
        # The blocks after a key, sorted by content: the longest common prefix is that of a neighbour.
        self._children: dict[bytes, list[tuple[Content, int]]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._entries

    def lookup(self, key: bytes) -> int | None:
        """The full block with that key."""
        return self._block_of.get(key)

    def longest_match(self, parent: bytes, content: Content) -> tuple[int, int]:
        """The block after ``parent`` with the longest common prefix with ``content``, and its length in
        tokens; (-1, 0) without a common token."""
        children = self._children.get(parent, [])
        index = bisect_left(children, (content, -1))
        neighbours = children[max(0, index - 1) : index + 1]
        found = [(num_common(known, content), block) for known, block in neighbours]
        num_rows, block = max(found, default=(0, -1))
        return (block, num_rows) if num_rows else (-1, 0)

    def insert(self, block: int, parent: bytes, content: Content, key: bytes | None = None) -> None:
        """Record a block's content; ``key`` if it is full. Ignored if another block has the content."""
        is_known = key in self._block_of if key else self.longest_match(parent, content)[1] == len(content)
        if is_known or block in self._entries:
            return
        self._entries[block] = _Entry(parent, content, key)
        insort(self._children.setdefault(parent, []), (content, block))
        if key is not None:
            self._block_of[key] = block

    def remove(self, block: int) -> None:
        """Drop a block, if it is known: its content will change."""
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
        """A description of the first inconsistency; None if there is none."""
        full = {entry.key: block for block, entry in self._entries.items() if entry.key is not None}
        if full != self._block_of:
            return "keys and blocks do not correspond one to one"
        children = {block: (parent, content) for parent, content, block in self._all_children()}
        if children != {block: (entry.parent, entry.content) for block, entry in self._entries.items()}:
            return "a block is not where its content says"
        if any(not siblings or siblings != sorted(siblings) for siblings in self._children.values()):
            return "the blocks after a key are not sorted"
        return None

    def _all_children(self) -> list[tuple[bytes, Content, int]]:
        return [(parent, *child) for parent, children in self._children.items() for child in children]


@dataclass(frozen=True, slots=True)
class _Entry:
    parent: bytes
    content: Content
    key: bytes | None
