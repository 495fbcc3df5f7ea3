"""The block manager: allocates KV cache blocks to sequences and shares common prefixes.

A block holds the keys and values of ``block_size`` consecutive tokens. `PrefixCache` finds blocks whose
tokens have already been computed. Full blocks are shared without copying, because they are no longer written
to. If only part of a block matches, or if another sequence is still filling it, the matching rows are copied.
Therefore, the whole common prefix is reused, not just its full blocks.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from llava_worker.engine.core.prefix_cache import (
    Content,
    PrefixCache,
    block_key,
    content_of,
    num_common,
    root_key,
)
from llava_worker.engine.core.sequence import Sequence

__all__ = ["BlockAccountingError", "BlockCopy", "BlockManager"]

# A sequence waits for another one only if the other one will compute at least this many shared tokens.
MIN_PENDING_TOKENS = 16


class BlockAccountingError(RuntimeError):
    """Raised if a block is lost, used twice or shared incorrectly, which indicates a bug in the engine."""


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """A pending copy of the first ``num_rows`` rows of block ``source`` to block ``destination``."""

    source: int
    destination: int
    num_rows: int


class BlockManager:
    """Allocates blocks to sequences and frees them.

    Every block is in exactly one state:

        used     in one or more block tables; the reference count is the number of these tables
        cached   in no table, but with known content; the least recently used block is evicted first
        free     in no table, and with unknown content
    """

    def __init__(self, num_blocks: int, block_size: int, *, is_sharing: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._is_sharing = is_sharing
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._num_refs = [0] * num_blocks
        self._num_ever_used = 0
        self._prefixes = PrefixCache()
        self._sequences: dict[Sequence, None] = {}  # sequences that have blocks, in allocation order

    @property
    def num_free(self) -> int:
        """The number of blocks that can be allocated now, including cached blocks."""
        return len(self._free) + len(self._cached)

    @property
    def num_ever_used(self) -> int:
        """The number of blocks that have ever been allocated: those with the lowest numbers."""
        return self._num_ever_used

    @property
    def sequences(self) -> Container[Sequence]:
        """The sequences that have blocks. A sequence keeps its blocks until it ends or is preempted."""
        return self._sequences

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def is_prefix_pending(self, sequence: Sequence) -> bool:
        """Return whether a running sequence is about to compute tokens that this sequence could share.

        Returns False if waiting would save fewer than MIN_PENDING_TOKENS tokens, or if the running sequence
        has a lower priority.
        """
        if not self._is_sharing or sequence.needs_prompt_logprobs:
            return False
        match = self._match_prefix(sequence)
        index = len(match.blocks)
        start = index * self.block_size
        end = start + match.num_rows + min(self.block_size, MIN_PENDING_TOKENS)  # may be in the next block
        if end >= sequence.num_tokens:  # the last token is always computed
            return False
        content = content_of(sequence, start, end)
        return any(
            content_of(other, start, end) == content
            for other in self._sequences
            if other.num_computed < end
            and other.priority >= sequence.priority
            and _has_same_token(sequence, other, end - 1)
            and self._key_before(other, index) == self._key_before(sequence, index)
        )

    def allocate(self, sequence: Sequence, *, num_spare: int = 0) -> list[BlockCopy] | None:
        """Allocate blocks for all tokens of the sequence, sharing leading blocks found in the prefix cache.

        Sets ``num_computed`` to the number of tokens found in the cache, leaving at least one token to
        compute. Returns the block copies to perform before the next forward pass. If blocks are allocated for
        several sequences, the copies must be performed in the order of allocation. Returns None and allocates
        nothing if fewer than ``num_spare`` blocks would remain free.
        """
        assert not sequence.block_table
        match = self._match_prefix(sequence)
        if self._num_missing(sequence, match) + num_spare > self.num_free:
            return None
        num_new = self.num_blocks_for(sequence.num_tokens) - len(match.blocks)
        for block in match.blocks:  # must precede the allocation of new blocks, which may evict cached ones
            self._acquire(block)
        if match.source in self._cached:
            # Mark the source block as recently used. If it is evicted below anyway, it is still copied before
            # it is overwritten.
            self._cached.move_to_end(match.source)
        new = [self._take_free() for _ in range(num_new)]
        sequence.block_table = match.blocks + new
        sequence.num_published = len(match.blocks)
        sequence.num_computed = len(match.blocks) * self.block_size + match.num_rows
        self._sequences[sequence] = None
        is_copied = match.num_rows > 0 and match.source != new[0]
        return [BlockCopy(match.source, new[0], match.num_rows)] if is_copied else []

    def can_allocate(self, sequence: Sequence, *, num_spare: int = 0) -> bool:
        """Return whether ``allocate`` would succeed."""
        return self._num_missing(sequence, self._match_prefix(sequence)) + num_spare <= self.num_free

    def append_slots(self, sequence: Sequence, num_extra: int = 0, *, num_spare: int = 0) -> bool:
        """Allocate enough blocks for all tokens of the sequence plus ``num_extra`` additional tokens.

        Returns False and allocates nothing if fewer than ``num_spare`` blocks would remain free.
        """
        num_new = self.num_blocks_for(sequence.num_tokens + num_extra) - len(sequence.block_table)
        if num_new <= 0:
            return True
        if num_new + num_spare > self.num_free:
            return False
        sequence.block_table += [self._take_free() for _ in range(num_new)]
        return True

    def trim(self, sequence: Sequence) -> None:
        """Free the blocks at the end of the block table that contain no tokens of the sequence."""
        while len(sequence.block_table) > self.num_blocks_for(sequence.num_tokens):
            self._release(sequence.block_table.pop())

    def cache_full_blocks(self, sequence: Sequence) -> None:
        """Add the sequence's full, computed blocks to the prefix cache."""
        if not self._is_sharing:
            return
        for index in range(sequence.num_published, sequence.num_computed // self.block_size):
            content, key = self._content(sequence, index), self._key_before(sequence, index + 1)
            parent = self._key_before(sequence, index)
            self._prefixes.insert(sequence.block_table[index], parent, content, key)
            sequence.num_published = index + 1

    def free(self, sequence: Sequence) -> None:
        """Free the blocks of the sequence.

        Their content stays cached, including the content of a partially filled last block.
        """
        self._cache_partial_block(sequence)
        # Blocks are evicted in the order in which they are released. Release the tail first, because a block
        # is useless without its prefix.
        for block in reversed(sequence.block_table):
            self._release(block)
        self._sequences.pop(sequence, None)
        sequence.block_table = []
        sequence.num_published = 0
        sequence.num_computed = 0

    def invalidate(self, sequence: Sequence) -> None:
        """Remove the sequence's blocks from the prefix cache because their content may be wrong."""
        for block in sequence.block_table:
            self._prefixes.remove(block)
        sequence.num_computed = sequence.num_published = 0

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Check that only ``sequences`` use blocks and that every block is in exactly one state.

        Raises BlockAccountingError if either condition is violated.
        """
        error = next(self._inconsistencies(list(sequences)), None) or self._prefixes.inconsistency()
        if error is not None:
            raise BlockAccountingError(error)

    def _inconsistencies(self, sequences: list[Sequence]) -> Iterator[str]:
        used: Counter[int] = Counter()
        for sequence in sequences:
            if len(set(sequence.block_table)) != len(sequence.block_table):
                yield f"The block table of sequence {sequence.seq_id} contains the same block twice."
            if sequence.num_computed > len(sequence.block_table) * self.block_size:
                yield f"Sequence {sequence.seq_id} has more computed tokens than its blocks can hold."
            used.update(sequence.block_table)
        states = Counter([*self._free, *self._cached, *used.keys()])
        if states != Counter(range(self.num_blocks)):
            wrong = sorted(block for block in range(self.num_blocks) if states[block] != 1)
            yield f"These blocks are not in exactly one state: {wrong}."
        if any(self._num_refs[block] != used[block] for block in range(self.num_blocks)):
            yield "The reference counts do not match the block tables."
        if self._sequences.keys() != {sequence for sequence in sequences if sequence.block_table}:
            yield "The sequences recorded as having blocks do not match the block tables."
        if any(block not in self._prefixes for block in self._cached):
            yield "A cached block is not in the prefix cache."
        if any(block in self._prefixes for block in self._free):
            yield "A free block is in the prefix cache."

    def _num_missing(self, sequence: Sequence, match: _PrefixMatch) -> int:
        """Return the number of available blocks that an allocation would use.

        Cached blocks that match are included.
        """
        num_new = self.num_blocks_for(sequence.num_tokens) - len(match.blocks)
        return num_new + sum(self._num_refs[block] == 0 for block in match.blocks)

    def _match_prefix(self, sequence: Sequence) -> _PrefixMatch:
        """Return the longest prefix of the sequence whose keys and values are in the KV cache."""
        if not self._is_sharing or sequence.needs_prompt_logprobs:  # cached tokens have no logits
            return _PrefixMatch([], -1, 0)
        blocks: list[int] = []
        for index in range((sequence.num_tokens - 1) // self.block_size):  # the last token is always computed
            block = self._prefixes.lookup(self._key_before(sequence, index + 1))
            if block is None:
                break
            blocks.append(block)
        num_full = len(blocks)
        parent, content = self._key_before(sequence, num_full), self._content(sequence, num_full)
        content = content[: sequence.num_tokens - 1 - num_full * self.block_size]
        source, num_rows = self._prefixes.longest_match(parent, content)
        for other in self._sequences:  # blocks that are still being filled are not in the prefix cache
            last, num_filled = divmod(other.num_computed, self.block_size)
            if (
                min(num_filled, len(content)) > num_rows
                and _has_same_token(sequence, other, last * self.block_size + num_rows)
                and self._key_before(other, last) == parent
            ):
                num_same = num_common(content, self._content(other, last)[:num_filled])
                if num_same > num_rows:
                    source, num_rows = other.block_table[last], num_same
        return _PrefixMatch(blocks, source, num_rows)

    def _content(self, sequence: Sequence, index: int) -> Content:
        """Return the content of block ``index`` up to the last known token.

        The tokens need not have been computed yet.
        """
        start = index * self.block_size
        return content_of(sequence, start, min(start + self.block_size, sequence.num_tokens))

    def _key_before(self, sequence: Sequence, index: int) -> bytes:
        """Return the hash key of the tokens before block ``index``. All of these tokens must be known."""
        keys = sequence.block_keys
        while len(keys) < index:
            parent = keys[-1] if keys else root_key(sequence.cache_scope)
            keys.append(block_key(parent, self._content(sequence, len(keys))))
        return keys[index - 1] if index else root_key(sequence.cache_scope)

    def _cache_partial_block(self, sequence: Sequence) -> None:
        last, num_rows = divmod(sequence.num_computed, self.block_size)
        if self._is_sharing and num_rows:
            content = self._content(sequence, last)[:num_rows]
            self._prefixes.insert(sequence.block_table[last], self._key_before(sequence, last), content)

    def _take_free(self) -> int:
        """Take a free block, or evict a cached one, and set its reference count to 1.

        The caller must ensure that a block is available.
        """
        if self._free:
            block = self._free.pop()  # blocks that have never been used are taken last, in ascending order
            self._num_ever_used = max(self._num_ever_used, block + 1)
        else:
            block, _ = self._cached.popitem(last=False)
            self._prefixes.remove(block)
        self._num_refs[block] = 1
        return block

    def _acquire(self, block: int) -> None:
        self._cached.pop(block, None)
        self._num_refs[block] += 1

    def _release(self, block: int) -> None:
        self._num_refs[block] -= 1
        if self._num_refs[block]:
            return
        if block in self._prefixes:
            self._cached[block] = None
        else:
            self._free.append(block)


def _has_same_token(one: Sequence, other: Sequence, index: int) -> bool:
    """Return whether both sequences have the same token at ``index``.

    This check is cheap and avoids comparing the whole content of most blocks that differ.
    """
    return one.token_ids(index, index + 1) == other.token_ids(index, index + 1) != []


class _PrefixMatch(NamedTuple):
    """The cached prefix of a sequence: full blocks, followed by ``num_rows`` rows of block ``source``."""

    blocks: list[int]
    source: int
    num_rows: int
