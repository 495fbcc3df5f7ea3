"""The block manager: which sequences use which blocks of the KV cache.

A block holds the keys and values of ``block_size`` consecutive tokens. `PrefixCache` finds the blocks whose
tokens were computed before. Full blocks are shared without copying, because they are not written to any more.
The first rows of a block that continues differently, or that another sequence is still filling, are copied,
so that a common prefix is reused to the token.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
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

# A sequence waits for another one's prefix if that saves at least so many tokens: the time of a step.
MIN_PENDING_TOKENS = 16


class BlockAccountingError(RuntimeError):
    """A block is lost, used twice or shared wrongly: a bug in the engine."""


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy the first ``num_rows`` tokens of block ``source`` to ``destination``."""

    source: int
    destination: int
    num_rows: int


class BlockManager:
    """Allocates blocks to sequences and frees them.

    Every block is in exactly one state:

        used     in as many block tables as its reference count says, at least one
        cached   in no table, content known; the least recently used is evicted first
        free     in no table, content unknown
    """

    def __init__(self, num_blocks: int, block_size: int, *, is_sharing: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._is_sharing = is_sharing
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._num_refs = [0] * num_blocks
        self._prefixes = PrefixCache()
        self._sequences: dict[Sequence, None] = {}  # those with blocks, in the order of allocation

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached ones included."""
        return len(self._free) + len(self._cached)

    def has_blocks(self, sequence: Sequence) -> bool:
        """Whether the sequence has blocks: from its admission until it ends or is preempted."""
        return sequence in self._sequences

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def is_prefix_pending(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute tokens that this one could then share.

        Only if that saves enough tokens, and never because of a sequence with a lower priority.
        """
        if not self._is_sharing or sequence.needs_prompt_logprobs:
            return False
        match = self._match_prefix(sequence)
        index = len(match.blocks)
        start = index * self.block_size
        end = start + match.num_rows + min(self.block_size, MIN_PENDING_TOKENS)  # maybe in the next block
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
        """Allocate blocks for all of the sequence's tokens, sharing leading ones whose content is known.

        Sets ``num_computed`` to the number of tokens found; at least one token remains to be computed.
        Returns the copies to make, in the order of allocations, before the next forward pass. Returns None
        and allocates nothing if fewer than ``num_spare`` blocks would stay free.
        """
        assert not sequence.block_table
        match = self._match_prefix(sequence)
        if self._num_missing(sequence, match) + num_spare > self.num_free:
            return None
        num_new = self.num_blocks_for(sequence.num_tokens) - len(match.blocks)
        for block in match.blocks:  # before any new one: taking a new one evicts cached blocks
            self._acquire(block)
        if match.source in self._cached:
            # Recently used, so evicted last. If it is evicted here, it is still copied before it is written.
            self._cached.move_to_end(match.source)
        new = [self._take_free() for _ in range(num_new)]
        sequence.block_table = match.blocks + new
        sequence.num_published = len(match.blocks)
        sequence.num_computed = len(match.blocks) * self.block_size + match.num_rows
        self._sequences[sequence] = None
        is_copied = match.num_rows > 0 and match.source != new[0]
        return [BlockCopy(match.source, new[0], match.num_rows)] if is_copied else []

    def can_allocate(self, sequence: Sequence, *, num_spare: int = 0) -> bool:
        """Whether ``allocate`` would succeed."""
        return self._num_missing(sequence, self._match_prefix(sequence)) + num_spare <= self.num_free

    def append_slots(self, sequence: Sequence, num_extra: int = 0, *, num_spare: int = 0) -> bool:
        """Make room for all of the sequence's tokens and ``num_extra`` after them.

        Returns False and allocates nothing if fewer than ``num_spare`` blocks would stay free.
        """
        num_new = self.num_blocks_for(sequence.num_tokens + num_extra) - len(sequence.block_table)
        if num_new > 0 and num_new + num_spare > self.num_free:
            return False
        sequence.block_table += [self._take_free() for _ in range(num_new)]
        return True

    def trim(self, sequence: Sequence) -> None:
        """Free the blocks beyond the sequence's tokens."""
        while len(sequence.block_table) > self.num_blocks_for(sequence.num_tokens):
            self._release(sequence.block_table.pop())

    def cache_full_blocks(self, sequence: Sequence) -> None:
        """Let other sequences share the blocks that are full and computed."""
        if not self._is_sharing:
            return
        for index in range(sequence.num_published, sequence.num_computed // self.block_size):
            content, key = self._content(sequence, index), self._key_before(sequence, index + 1)
            parent = self._key_before(sequence, index)
            self._prefixes.insert(sequence.block_table[index], parent, content, key)
            sequence.num_published = index + 1

    def free(self, sequence: Sequence) -> None:
        """Free all blocks of the sequence. Their content stays cached, that of the partial last one too."""
        self._cache_partial_block(sequence)
        # Evicted in the order of release, and a chain is useless without its head: the tail goes first.
        for block in reversed(sequence.block_table):
            self._release(block)
        self._sequences.pop(sequence, None)
        sequence.block_table = []
        sequence.num_published = 0
        sequence.num_computed = 0

    def invalidate(self, sequence: Sequence) -> None:
        """Remove the sequence's blocks from the prefix cache: their content may be wrong."""
        for block in sequence.block_table:
            self._prefixes.remove(block)
        sequence.num_computed = sequence.num_published = 0

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Verify that only ``sequences`` use blocks, and that every block is in exactly one state.

        Raises BlockAccountingError.
        """
        error = next(self._inconsistencies(list(sequences)), None) or self._prefixes.inconsistency()
        if error is not None:
            raise BlockAccountingError(error)

    def _inconsistencies(self, sequences: list[Sequence]) -> Iterator[str]:
        used: Counter[int] = Counter()
        for sequence in sequences:
            if len(set(sequence.block_table)) != len(sequence.block_table):
                yield f"sequence {sequence.seq_id} holds a block twice"
            if sequence.num_computed > len(sequence.block_table) * self.block_size:
                yield f"sequence {sequence.seq_id} has computed more than its blocks hold"
            used.update(sequence.block_table)
        states = Counter([*self._free, *self._cached, *used.keys()])
        if states != Counter(range(self.num_blocks)):
            wrong = sorted(block for block in range(self.num_blocks) if states[block] != 1)
            yield f"blocks in no state or in several: {wrong}"
        if any(self._num_refs[block] != used[block] for block in range(self.num_blocks)):
            yield "reference counts differ from the block tables"
        if self._sequences.keys() != {sequence for sequence in sequences if sequence.block_table}:
            yield "the sequences with blocks are not those with a block table"
        if any(block not in self._prefixes for block in self._cached):
            yield "the content of a cached block is unknown"
        if any(block in self._prefixes for block in self._free):
            yield "the content of a free block is known"

    def _num_missing(self, sequence: Sequence, match: _PrefixMatch) -> int:
        """Free blocks that an allocation takes: new ones, and cached ones of the prefix."""
        num_new = self.num_blocks_for(sequence.num_tokens) - len(match.blocks)
        return num_new + sum(self._num_refs[block] == 0 for block in match.blocks)

    def _match_prefix(self, sequence: Sequence) -> _PrefixMatch:
        """The longest prefix whose keys and values are in the cache."""
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
        for other in self._sequences:  # the blocks they are filling are not in the prefix cache yet
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
        """The content of block ``index``, computed or not, as far as its tokens are known."""
        start = index * self.block_size
        return content_of(sequence, start, min(start + self.block_size, sequence.num_tokens))

    def _key_before(self, sequence: Sequence, index: int) -> bytes:
        """The key of the tokens before block ``index``, all of which must be known."""
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
        """Take a free block, else evict a cached one, and reference it once. There must be one."""
        if self._free:
            block = self._free.pop()
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
    """A cheap test that rules out nearly all comparisons of different contents."""
    return one.token_ids(index, index + 1) == other.token_ids(index, index + 1) != []


class _PrefixMatch(NamedTuple):
    """Cached tokens of a sequence: full blocks, and ``num_rows`` of block ``source`` after them."""

    blocks: list[int]
    source: int
    num_rows: int
