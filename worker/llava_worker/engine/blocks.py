"""Who owns which block of the KV cache, and what is known about the content of full ones.

A block holds the keys and values of ``block_size`` consecutive tokens. The content of a full block is named
by a key that chains over everything before it:

    key[i] = hash(key[i - 1], token ids of block i, pictures standing in block i)      key[-1] = hash(scope)

so equal keys mean equal keys and values, two scopes never share, and a picture counts by its digest.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from llava_worker.engine.sequence import Sequence

__all__ = ["BlockAccountingError", "BlockManager"]


class BlockAccountingError(RuntimeError):
    """A block is lost, held twice or shared wrongly: a bug in the engine."""


class BlockManager:
    """Hands out blocks to sequences and takes them back.

    Every block is in exactly one place:

        held     in as many block tables as its reference count says, at least one
        cached   in no table, content known by key; the least recently released is evicted first
        free     in no table, content unknown
    """

    def __init__(self, num_blocks: int, block_size: int, *, is_sharing: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._is_sharing = is_sharing
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._num_refs = [0] * num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be had at once, cached ones included."""
        return len(self._free) + len(self._cached)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def admit(self, sequence: Sequence, *, num_spare: int = 0) -> bool:
        """Give the sequence blocks for all its tokens, leading ones shared where their content is known.

        After, ``num_computed`` tokens need not be computed any more; at least one token does.
        False, and nothing taken, where fewer than ``num_spare`` blocks would stay free.
        """
        assert not sequence.block_table
        shared = self._known_prefix(sequence)
        num_new = self.num_needed(sequence.num_tokens) - len(shared)
        num_revived = sum(self._num_refs[block] == 0 for block in shared)
        if num_new + num_revived + num_spare > self.num_free:
            return False
        for block in shared:  # before any new one is taken: taking evicts cached blocks
            self._hold(block)
        sequence.block_table = shared + [self._take() for _ in range(num_new)]
        sequence.num_computed = len(shared) * self.block_size
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Make room for every token of the sequence; False, and nothing taken, where no block is free."""
        num_new = self.num_needed(sequence.num_tokens) - len(sequence.block_table)
        if num_new > self.num_free:
            return False
        sequence.block_table += [self._take() for _ in range(num_new)]
        return True

    def publish(self, sequence: Sequence) -> None:
        """Let others share the sequence's blocks that are full and computed by now."""
        if not self._is_sharing:
            return
        first = len(sequence.block_keys)
        for index in range(first, sequence.num_computed // self.block_size):
            key = self._next_key(sequence)
            sequence.block_keys.append(key)
            self._remember(sequence.block_table[index], key)

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back; the sequence has nothing computed after."""
        # Released first is evicted first, and a chain without its head is of no use: the end goes first.
        for block in reversed(sequence.block_table):
            self._drop(block)
        sequence.block_table = []
        sequence.block_keys = []
        sequence.num_computed = 0

    def forget(self, sequence: Sequence) -> None:
        """Nobody may share the sequence's blocks from now on: their content is in doubt."""
        for block in sequence.block_table:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Prove that ``sequences`` are all that hold blocks and that no block is lost or in two places.

        Raises BlockAccountingError with what is wrong.
        """
        held: Counter[int] = Counter()
        for sequence in sequences:
            if len(set(sequence.block_table)) != len(sequence.block_table):
                raise BlockAccountingError(f"sequence {sequence.seq_id} holds a block twice")
            held.update(sequence.block_table)
        places = Counter([*self._free, *self._cached, *held.keys()])
        if places != Counter(range(self.num_blocks)):
            wrong = sorted(block for block in range(self.num_blocks) if places[block] != 1)
            raise BlockAccountingError(f"blocks in no place or in several: {wrong}")
        if any(self._num_refs[block] != held[block] for block in range(self.num_blocks)):
            raise BlockAccountingError("reference counts differ from the block tables")
        if {key: block for block, key in self._key_of.items()} != self._block_of:
            raise BlockAccountingError("keys and blocks do not belong to each other one to one")
        if not self._cached.keys() <= self._key_of.keys():
            raise BlockAccountingError("a cached block has no key")

    def _known_prefix(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the sequence's leading tokens; sets ``block_keys`` to theirs."""
        sequence.block_keys = []
        if not self._is_sharing:
            return []
        blocks: list[int] = []
        for _ in range((sequence.num_tokens - 1) // self.block_size):  # the last token is always computed
            key = self._next_key(sequence)
            block = self._block_of.get(key)
            if block is None:
                break
            sequence.block_keys.append(key)
            blocks.append(block)
        return blocks

    def _next_key(self, sequence: Sequence) -> bytes:
        """The key of the first block that ``block_keys`` does not name yet; that block must be full."""
        keys = sequence.block_keys
        parent = keys[-1] if keys else blake2b(sequence.cache_scope.encode(), digest_size=32).digest()
        start = len(keys) * self.block_size
        end = start + self.block_size
        key = blake2b(parent, digest_size=32)
        key.update(array("q", sequence.token_ids(start, end)).tobytes())
        for image in sequence.images_within(start, end):
            key.update(f"{image.start - start}:{image.length}:{image.content};".encode())
        return key.digest()

    def _remember(self, block: int, key: bytes) -> None:
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def _take(self) -> int:
        """A block of unknown content, held once. One must be free."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._num_refs[block] = 1
        return block

    def _hold(self, block: int) -> None:
        self._cached.pop(block, None)
        self._num_refs[block] += 1

    def _drop(self, block: int) -> None:
        self._num_refs[block] -= 1
        if self._num_refs[block]:
            return
        if block in self._key_of:
            self._cached[block] = None
        else:
            self._free.append(block)
