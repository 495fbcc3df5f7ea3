"""What is in which block of the KV cache, found by what stands before it.

A block's content is a number for each token whose keys and values it holds. What stands before it has a key,
which chains over every full block from the beginning:

    key[i] = hash(key[i - 1], content of block i)      key[-1] = hash(scope)

so equal keys mean equal keys and values, and two scopes never share. Only a full block has a key of its own.
One that was filled in part ends its chain, but like any other it may lend its first rows to a copy.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from hashlib import blake2b

from llava_worker.engine.core.sequence import Sequence

__all__ = ["Content", "PrefixIndex", "chain", "content_of", "num_common", "root"]

Content = tuple[int, ...]

_PLACE_BITS = 32  # more than a picture has tokens


def root(scope: str) -> bytes:
    """The key of what stands before the first block."""
    return blake2b(scope.encode(), digest_size=32).digest()


def chain(parent: bytes, content: Content) -> bytes:
    """The key of a full block."""
    return blake2b(parent + repr(content).encode(), digest_size=32).digest()


def content_of(sequence: Sequence, start: int, end: int) -> Content:
    """Of tokens [start, end): a token's id, or for a picture's a number below 0 of the picture and the place
    in it. So pictures count by what they show, also one of which the block holds only a part."""
    numbers = sequence.token_ids(start, end)
    for image in sequence.images_within(start, end):
        name = int.from_bytes(blake2b(image.content.encode(), digest_size=16).digest(), "big")
        for position in range(max(start, image.start), min(end, image.end)):
            numbers[position - start] = -1 - (name << _PLACE_BITS | position - image.start)
    return tuple(numbers)


def num_common(one: Content, other: Content) -> int:
    """Tokens from the front that are the same."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    return next(index for index in range(limit) if one[index] != other[index])


class PrefixIndex:
    """The blocks whose content is known. Who holds them is not known here."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._block_of: dict[bytes, int] = {}
        # What follows a key, in the order of contents: the longest common beginning is a neighbour's.
        self._followers: dict[bytes, list[tuple[Content, int]]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._entries

    def find(self, key: bytes) -> int | None:
        """The full block of that key."""
        return self._block_of.get(key)

    def longest(self, parent: bytes, wanted: Content) -> tuple[int, int]:
        """The block after ``parent`` that begins with most of ``wanted``, and with how many tokens of it;
        (-1, 0) if none has the first."""
        followers = self._followers.get(parent, [])
        place = bisect_left(followers, (wanted, -1))
        neighbours = followers[max(0, place - 1) : place + 1]
        found = [(num_common(content, wanted), block) for content, block in neighbours]
        num_rows, block = max(found, default=(0, -1))
        return (block, num_rows) if num_rows else (-1, 0)

    def remember(self, block: int, parent: bytes, content: Content, key: bytes | None = None) -> None:
        """Note what a block holds; ``key`` if it is full. Nothing where another block says it already."""
        is_known = key in self._block_of if key else self.longest(parent, content)[1] == len(content)
        if is_known or block in self._entries:
            return
        self._entries[block] = _Entry(parent, content, key)
        insort(self._followers.setdefault(parent, []), (content, block))
        if key is not None:
            self._block_of[key] = block

    def forget(self, block: int) -> None:
        """The block will hold something else; one that is not known is no error."""
        entry = self._entries.pop(block, None)
        if entry is None:
            return
        followers = self._followers[entry.parent]
        del followers[bisect_left(followers, (entry.content, block))]
        if not followers:
            del self._followers[entry.parent]
        if entry.key is not None:
            del self._block_of[entry.key]

    def fault(self) -> str | None:
        """What is wrong with the index itself; None if nothing is."""
        full = {entry.key: block for block, entry in self._entries.items() if entry.key is not None}
        if full != self._block_of:
            return "keys and blocks do not belong to each other one to one"
        followers = {block: (parent, content) for parent, content, block in self._all_followers()}
        if followers != {block: (entry.parent, entry.content) for block, entry in self._entries.items()}:
            return "a block is not found where its content says"
        if any(not each or each != sorted(each) for each in self._followers.values()):
            return "what follows a key is out of order"
        return None

    def _all_followers(self) -> list[tuple[bytes, Content, int]]:
        return [(parent, *each) for parent, followers in self._followers.items() for each in followers]


@dataclass(frozen=True, slots=True)
class _Entry:
    parent: bytes
    content: Content
    key: bytes | None
