"""Who owns which block of the KV cache, and who may share it.

A block holds the keys and values of ``block_size`` consecutive tokens. What was computed once is found again
by `PrefixIndex`. Full blocks are shared as they are, because nobody writes to them any more. The first rows
of a block that goes on differently, or that another sequence still fills, are shared by a copy; so a known
beginning is reused to the token.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from llava_worker.engine.core.prefix_cache import Content, PrefixIndex, chain, content_of, num_common, root
from llava_worker.engine.core.sequence import Sequence

__all__ = ["BlockAccountingError", "BlockCopy", "BlockManager"]

# Tokens that must be spared to make waiting for another sequence worth it: a step's time.
WORTH_WAITING = 16


class BlockAccountingError(RuntimeError):
    """A block is lost, held twice or shared wrongly: a bug in the engine."""


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """The first ``num_rows`` tokens of block ``source`` are to stand in ``destination`` too."""

    source: int
    destination: int
    num_rows: int


class BlockManager:
    """Hands out blocks to sequences and takes them back.

    Every block is in exactly one place:

        held     in as many block tables as its reference count says, at least one
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
        self._index = PrefixIndex()
        self._holders: dict[Sequence, None] = {}  # in the order of admission

    @property
    def num_free(self) -> int:
        """Blocks that can be had at once, cached ones included."""
        return len(self._free) + len(self._cached)

    def is_holding(self, sequence: Sequence) -> bool:
        """Whether the sequence has blocks; it has from its admission until it ends or is preempted."""
        return sequence in self._holders

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def is_coming(self, sequence: Sequence) -> bool:
        """Whether a sequence that holds blocks is about to compute what this one could then share.

        Only for as much as is worth a wait, and never because of somebody who is less urgent.
        """
        if not self._is_sharing or sequence.owes_prompt_logprobs:
            return False
        known = self._known_prefix(sequence)
        after = len(known.blocks)
        start = after * self.block_size
        end = start + known.num_rows + min(self.block_size, WORTH_WAITING)  # perhaps in the block after
        if end >= sequence.num_tokens:  # the last token is always computed
            return False
        wanted = content_of(sequence, start, end)
        return any(
            content_of(other, start, end) == wanted
            for other in self._holders
            if other.num_computed < end
            and other.priority >= sequence.priority
            and _is_same_token(sequence, other, end - 1)
            and self._parent(other, after) == self._parent(sequence, after)
        )

    def admit(self, sequence: Sequence, *, num_spare: int = 0) -> list[BlockCopy] | None:
        """Give the sequence blocks for all its tokens, leading ones shared where their content is known.

        After, ``num_computed`` tokens need not be computed any more; at least one token does. Returns the
        copies that make it so: they must be done, in the order of admissions, before the next forward pass.
        None, and nothing taken, where fewer than ``num_spare`` blocks would stay free.
        """
        assert not sequence.block_table
        known = self._known_prefix(sequence)
        if self._num_missing(sequence, known) + num_spare > self.num_free:
            return None
        num_new = self.num_needed(sequence.num_tokens) - len(known.blocks)
        for block in known.blocks:  # before any new one is taken: taking evicts cached blocks
            self._hold(block)
        if known.source in self._cached:
            # Used now, so evicted last; if it is, it is still copied from before anybody writes to it.
            self._cached.move_to_end(known.source)
        new = [self._take() for _ in range(num_new)]
        sequence.block_table = known.blocks + new
        sequence.num_published = len(known.blocks)
        sequence.num_computed = len(known.blocks) * self.block_size + known.num_rows
        self._holders[sequence] = None
        is_copied = known.num_rows > 0 and known.source != new[0]
        return [BlockCopy(known.source, new[0], known.num_rows)] if is_copied else []

    def has_room(self, sequence: Sequence, *, num_spare: int = 0) -> bool:
        """Whether ``admit`` would take the sequence."""
        return self._num_missing(sequence, self._known_prefix(sequence)) + num_spare <= self.num_free

    def grow(self, sequence: Sequence) -> bool:
        """Make room for every token of the sequence; False, and nothing taken, where no block is free."""
        return self.stretch(sequence, 0)

    def stretch(self, sequence: Sequence, num_drafts: int, *, num_spare: int = 0) -> bool:
        """Room for ``num_drafts`` tokens after the sequence's own too.

        False, and nothing taken, where fewer than ``num_spare`` blocks would stay free.
        """
        num_new = self.num_needed(sequence.num_tokens + num_drafts) - len(sequence.block_table)
        if num_new > 0 and num_new + num_spare > self.num_free:
            return False
        sequence.block_table += [self._take() for _ in range(num_new)]
        return True

    def trim(self, sequence: Sequence) -> None:
        """Take back the blocks that are beyond the sequence's tokens."""
        while len(sequence.block_table) > self.num_needed(sequence.num_tokens):
            self._drop(sequence.block_table.pop())

    def publish(self, sequence: Sequence) -> None:
        """Let others share the sequence's blocks that are full and computed by now."""
        if not self._is_sharing:
            return
        for index in range(sequence.num_published, sequence.num_computed // self.block_size):
            content, key = self._content(sequence, index), self._parent(sequence, index + 1)
            self._index.remember(sequence.block_table[index], self._parent(sequence, index), content, key)
            sequence.num_published = index + 1

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back, the last one's content known too; the sequence has nothing computed after."""
        self._publish_last(sequence)
        # Released first is evicted first, and a chain without its head is of no use: the end goes first.
        for block in reversed(sequence.block_table):
            self._drop(block)
        self._holders.pop(sequence, None)
        sequence.block_table = []
        sequence.num_published = 0
        sequence.num_computed = 0

    def forget(self, sequence: Sequence) -> None:
        """Nobody may share the sequence's blocks from now on: their content is in doubt."""
        for block in sequence.block_table:
            self._index.forget(block)
        sequence.num_computed = sequence.num_published = 0

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Prove that ``sequences`` are all that hold blocks and that no block is lost or in two places.

        Raises BlockAccountingError with what is wrong.
        """
        fault = next(self._faults(list(sequences)), None) or self._index.fault()
        if fault is not None:
            raise BlockAccountingError(fault)

    def _faults(self, sequences: list[Sequence]) -> Iterator[str]:
        held: Counter[int] = Counter()
        for sequence in sequences:
            if len(set(sequence.block_table)) != len(sequence.block_table):
                yield f"sequence {sequence.seq_id} holds a block twice"
            if sequence.num_computed > len(sequence.block_table) * self.block_size:
                yield f"sequence {sequence.seq_id} has computed more than its blocks hold"
            held.update(sequence.block_table)
        places = Counter([*self._free, *self._cached, *held.keys()])
        if places != Counter(range(self.num_blocks)):
            wrong = sorted(block for block in range(self.num_blocks) if places[block] != 1)
            yield f"blocks in no place or in several: {wrong}"
        if any(self._num_refs[block] != held[block] for block in range(self.num_blocks)):
            yield "reference counts differ from the block tables"
        if self._holders.keys() != {sequence for sequence in sequences if sequence.block_table}:
            yield "those who hold blocks are not those who are known to"
        if any(block not in self._index for block in self._cached):
            yield "the content of a cached block is unknown"
        if any(block in self._index for block in self._free):
            yield "a free block counts as known"

    def _num_missing(self, sequence: Sequence, known: _Known) -> int:
        """Free blocks that an admission takes: new ones, and known ones that nobody holds."""
        num_new = self.num_needed(sequence.num_tokens) - len(known.blocks)
        return num_new + sum(self._num_refs[block] == 0 for block in known.blocks)

    def _known_prefix(self, sequence: Sequence) -> _Known:
        if not self._is_sharing or sequence.owes_prompt_logprobs:  # what is found has no logits
            return _Known([], -1, 0)
        blocks: list[int] = []
        for index in range((sequence.num_tokens - 1) // self.block_size):  # the last token is always computed
            block = self._index.find(self._parent(sequence, index + 1))
            if block is None:
                break
            blocks.append(block)
        parent, wanted = self._parent(sequence, len(blocks)), self._wanted(sequence, len(blocks))
        source, num_rows = self._index.longest(parent, wanted)
        for other in self._holders:  # what they are filling is not in the index yet
            last, num_filled = divmod(other.num_computed, self.block_size)
            place = last * self.block_size + num_rows
            if (
                min(num_filled, len(wanted)) > num_rows
                and _is_same_token(sequence, other, place)
                and self._parent(other, last) == parent
            ):
                num_same = num_common(wanted, self._content(other, last)[:num_filled])
                if num_same > num_rows:
                    source, num_rows = other.block_table[last], num_same
        return _Known(blocks, source, num_rows)

    def _wanted(self, sequence: Sequence, index: int) -> Content:
        """The content of block ``index`` but for the sequence's last token, which is always computed."""
        return self._content(sequence, index)[: sequence.num_tokens - 1 - index * self.block_size]

    def _content(self, sequence: Sequence, index: int) -> Content:
        """Of block ``index``, computed or not, as far as the tokens are known."""
        start = index * self.block_size
        return content_of(sequence, start, min(start + self.block_size, sequence.num_tokens))

    def _parent(self, sequence: Sequence, index: int) -> bytes:
        """The key of what stands before block ``index``, all of which must be known."""
        keys = sequence.block_keys
        while len(keys) < index:
            parent = keys[-1] if keys else root(sequence.cache_scope)
            keys.append(chain(parent, self._content(sequence, len(keys))))
        return keys[index - 1] if index else root(sequence.cache_scope)

    def _publish_last(self, sequence: Sequence) -> None:
        """Remember the block that is computed in part."""
        last, num_rows = divmod(sequence.num_computed, self.block_size)
        if self._is_sharing and num_rows:
            content = self._content(sequence, last)[:num_rows]
            self._index.remember(sequence.block_table[last], self._parent(sequence, last), content)

    def _take(self) -> int:
        """A block of unknown content, held once. One must be free."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._index.forget(block)
        self._num_refs[block] = 1
        return block

    def _hold(self, block: int) -> None:
        self._cached.pop(block, None)
        self._num_refs[block] += 1

    def _drop(self, block: int) -> None:
        self._num_refs[block] -= 1
        if self._num_refs[block]:
            return
        if block in self._index:
            self._cached[block] = None
        else:
            self._free.append(block)


def _is_same_token(one: Sequence, other: Sequence, place: int) -> bool:
    """Costs next to nothing, and spares nearly all comparisons of contents that would not agree."""
    return one.token_ids(place, place + 1) == other.token_ids(place, place + 1) != []


class _Known(NamedTuple):
    """What is in the cache of a sequence: full blocks, and ``num_rows`` of block ``source`` after them."""

    blocks: list[int]
    source: int
    num_rows: int
