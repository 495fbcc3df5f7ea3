"""Tests that blocks are never lost, shared incorrectly or matched with the wrong content."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from llava_worker.engine import Sequence
from llava_worker.engine.core.block_manager import BlockAccountingError, BlockCopy, BlockManager

from tests.worker.engine.core.sequences import cache_prompt, sequence_of


class BlockMachine(RuleBasedStateMachine):
    """Allocates, computes, extends, invalidates and frees sequences in random order.

    There are only two token IDs, so that sequences often share blocks. ``rows`` simulates the KV cache. For
    each token, it contains everything that the keys and values of the token depend on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = 3
        self.blocks = BlockManager(9, self.size)
        self.live: list[Sequence] = []
        self.rows: dict[int, Chain] = {}
        self.count = 0

    @rule(
        token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        scope=st.sampled_from("ab"),
        digest=st.sampled_from(["", "", "p", "q"]),
        num_spare=st.integers(0, 2),
    )
    def allocate(self, token_ids: list[int], scope: str, digest: str, num_spare: int) -> None:
        self.count += 1
        digest = digest if len(token_ids) >= 5 else ""
        sequence = sequence_of(token_ids, name=str(self.count), scope=scope, digest=digest)
        num_free = self.blocks.num_free
        copies = self.blocks.allocate(sequence, num_spare=num_spare)
        if copies is None:
            assert sequence.block_table == []
            assert self.blocks.num_free == num_free
            return
        assert self.blocks.num_free >= num_spare
        assert len(sequence.block_table) == self.blocks.num_blocks_for(sequence.num_tokens)
        assert sequence.num_computed < sequence.num_tokens
        for copy in copies:
            for row in range(copy.num_rows):
                rows = [block * self.size + row for block in (copy.source, copy.destination)]
                self.rows[rows[1]] = self.rows[rows[0]]
        for position in range(sequence.num_computed):
            assert self.rows[self.slot(sequence, position)] == chain(sequence, position)
        self.live.append(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def compute_some(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        end = data.draw(st.integers(sequence.num_computed, sequence.num_tokens))
        for position in range(sequence.num_computed, end):
            self.rows[self.slot(sequence, position)] = chain(sequence, position)
        sequence.num_computed = end
        self.blocks.cache_full_blocks(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token_id=st.integers(0, 1))
    def grow(self, data: st.DataObject, token_id: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        sequence.output_ids.append(token_id)
        if not self.blocks.append_slots(sequence):
            assert self.blocks.num_free == 0
            sequence.output_ids.pop()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), num_drafts=st.integers(0, 7), num_spare=st.integers(0, 2))
    def try_drafts(self, data: st.DataObject, num_drafts: int, num_spare: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        num_held = len(sequence.block_table)
        if self.blocks.append_slots(sequence, num_drafts, num_spare=num_spare):
            assert len(sequence.block_table) * self.size >= sequence.num_tokens + num_drafts
            for position in range(sequence.num_tokens, sequence.num_tokens + num_drafts):
                self.rows[self.slot(sequence, position)] = ("draft",)
        self.blocks.trim(sequence)
        assert len(sequence.block_table) == num_held

    @precondition(lambda self: self.live)
    @rule(data=st.data(), has_failed=st.booleans())
    def release(self, data: st.DataObject, has_failed: bool) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        if has_failed:
            self.blocks.invalidate(sequence)
        self.blocks.free(sequence)
        self.live.remove(sequence)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        self.blocks.check(self.live)

    def slot(self, sequence: Sequence, position: int) -> int:
        return sequence.block_table[position // self.size] * self.size + position % self.size

    def teardown(self) -> None:
        for sequence in self.live:
            self.blocks.free(sequence)
        self.blocks.check([])
        assert self.blocks.num_free == self.blocks.num_blocks


Chain = tuple[object, ...]


def chain(sequence: Sequence, position: int) -> Chain:
    """Return everything that the keys and values of a token depend on.

    Image contents replace placeholder token IDs.
    """
    tokens: list[object] = list(sequence.token_ids(0, position + 1))
    for image in sequence.images_within(0, position + 1):
        for place in range(image.start, min(image.end, position + 1)):
            tokens[place] = (image.content, place - image.start)
    return (sequence.cache_scope, *tokens)


TestBlocks = BlockMachine.TestCase
TestBlocks.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_the_least_recently_used_chain_is_evicted_first_from_its_tail() -> None:
    blocks = BlockManager(5, 2)
    cache_prompt(blocks, 1, 1, 1, 1)
    cache_prompt(blocks, 2, 2, 2, 2)

    last = sequence_of([3, 3, 3])  # uses the free block and evicts one block: the tail of the older chain
    blocks.allocate(last)
    blocks.free(last)

    for token_ids, num_kept in (([1, 1, 1, 1, 9], 2), ([2, 2, 2, 2, 9], 4)):
        again = sequence_of(token_ids)
        assert blocks.allocate(again) is not None
        assert again.num_computed == num_kept
        blocks.free(again)


def test_a_copy_source_can_be_evicted_by_its_own_allocation() -> None:
    blocks = BlockManager(2, 4)
    cache_prompt(blocks, 1, 2, 3)
    other = sequence_of([1, 2, 9, 9, 9])  # needs both blocks

    copies = blocks.allocate(other)

    assert copies == [BlockCopy(other.block_table[1], other.block_table[0], 2)]
    assert other.num_computed == 2
    blocks.check([other])


def test_a_copy_source_is_evicted_last() -> None:
    blocks = BlockManager(3, 4)
    cache_prompt(blocks, 1, 2, 3)
    cache_prompt(blocks, 7, 7)
    other = sequence_of([1, 2, 9, 9, 9])

    copies = blocks.allocate(other)

    assert copies is not None and len(copies) == 1
    assert num_reused_tokens(blocks, [1, 2, 3, 4]) == 3


def num_reused_tokens(blocks: BlockManager, token_ids: list[int]) -> int:
    """Return the number of tokens that a sequence with these tokens would reuse."""
    probe = sequence_of(token_ids, name="probe")
    assert blocks.allocate(probe) is not None
    num_known = probe.num_computed
    blocks.free(probe)
    return num_known


def leaked(blocks: BlockManager, held: Sequence) -> list[Sequence]:
    return []


def held_twice(blocks: BlockManager, held: Sequence) -> list[Sequence]:
    held.block_table[1] = held.block_table[0]
    return [held]


def shared_incorrectly(blocks: BlockManager, held: Sequence) -> list[Sequence]:
    other = sequence_of([7], name="two")
    other.block_table = held.block_table[:1]
    return [held, other]


def free_block_in_use(blocks: BlockManager, held: Sequence) -> list[Sequence]:
    held.block_table.append(next(b for b in range(4) if b not in held.block_table))
    return [held]


@pytest.mark.parametrize("damage", [leaked, held_twice, shared_incorrectly, free_block_in_use])
def test_check_detects_inconsistencies(damage: Callable[[BlockManager, Sequence], list[Sequence]]) -> None:
    blocks = BlockManager(4, 2)
    held = sequence_of([1, 2, 3])
    blocks.allocate(held)
    blocks.check([held])

    with pytest.raises(BlockAccountingError):
        blocks.check(damage(blocks, held))
