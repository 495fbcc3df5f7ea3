"""No block is ever lost, held by two who must not share it, or taken for another content."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.blocks import BlockAccountingError, BlockManager


def sequence_of(token_ids: list[int], *, name: str = "one", scope: str = "", digest: str = "") -> Sequence:
    images = [ImageSpan(2, 3, digest)] if digest else []
    return Sequence(seq_id=name, prompt_ids=token_ids, max_new_tokens=9, images=images, cache_scope=scope)


def compute(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.num_computed = sequence.num_tokens
    blocks.publish(sequence)


class BlockMachine(RuleBasedStateMachine):
    """Sequences come, compute, grow, fail and go in any order; a tiny alphabet makes them share much.

    ``content`` is what a cache would hold: for each block the chain of tokens that ends in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, 2)
        self.live: list[Sequence] = []
        self.content: dict[int, tuple[object, ...]] = {}
        self.count = 0

    @rule(
        token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        scope=st.sampled_from("ab"),
        digest=st.sampled_from(["", "", "p", "q"]),
        num_spare=st.integers(0, 2),
    )
    def admit(self, token_ids: list[int], scope: str, digest: str, num_spare: int) -> None:
        self.count += 1
        digest = digest if len(token_ids) >= 5 else ""
        sequence = sequence_of(token_ids, name=str(self.count), scope=scope, digest=digest)
        num_free = self.blocks.num_free
        if not self.blocks.admit(sequence, num_spare=num_spare):
            assert sequence.block_table == []
            assert self.blocks.num_free == num_free
            return
        assert self.blocks.num_free >= num_spare
        assert len(sequence.block_table) == self.blocks.num_needed(sequence.num_tokens)
        assert sequence.num_computed < sequence.num_tokens
        for index in range(sequence.num_computed // 2):
            assert self.content[sequence.block_table[index]] == chain(sequence, index)
        self.live.append(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def compute_some(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        end = data.draw(st.integers(sequence.num_computed, sequence.num_tokens))
        for index in range(sequence.num_computed // 2, end // 2):
            self.content[sequence.block_table[index]] = chain(sequence, index)
        sequence.num_computed = end
        self.blocks.publish(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token_id=st.integers(0, 1))
    def grow(self, data: st.DataObject, token_id: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        sequence.output_ids.append(token_id)
        if not self.blocks.grow(sequence):
            assert self.blocks.num_free == 0
            sequence.output_ids.pop()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), has_failed=st.booleans())
    def release(self, data: st.DataObject, has_failed: bool) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        if has_failed:
            self.blocks.forget(sequence)
        self.blocks.release(sequence)
        self.live.remove(sequence)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        self.blocks.check(self.live)

    def teardown(self) -> None:
        for sequence in self.live:
            self.blocks.release(sequence)
        self.blocks.check([])
        assert self.blocks.num_free == self.blocks.num_blocks


def chain(sequence: Sequence, index: int) -> tuple[object, ...]:
    end = (index + 1) * 2
    pictures = tuple((image.start, image.digest) for image in sequence.images_within(0, end))
    return (sequence.cache_scope, pictures, *sequence.token_ids(0, end))


TestBlocks = BlockMachine.TestCase
TestBlocks.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_a_known_prefix_is_shared_up_to_the_last_token() -> None:
    blocks = BlockManager(10, 2)
    first = sequence_of([1, 2, 3, 4])
    blocks.admit(first)
    compute(blocks, first)
    second = sequence_of([1, 2, 3, 4], name="two")

    blocks.admit(second)

    assert second.num_computed == 2  # the last block would leave nothing to compute
    assert second.block_table[0] == first.block_table[0]
    assert second.block_table[1] != first.block_table[1]


@pytest.mark.parametrize(
    "other",
    [
        sequence_of([9, 2, 3, 4, 5, 6]),
        sequence_of([1, 2, 3, 4, 5, 6], scope="other"),
        sequence_of([1, 2, 3, 4, 5, 6], digest="other"),
    ],
    ids=["first token", "scope", "picture"],
)
def test_a_prefix_that_differs_anywhere_is_not_shared(other: Sequence) -> None:
    blocks = BlockManager(10, 2)
    first = sequence_of([1, 2, 3, 4, 5, 6], digest="p")
    blocks.admit(first)
    compute(blocks, first)

    blocks.admit(other)

    shared = set(first.block_table) & set(other.block_table)
    assert len(shared) == other.num_computed // 2 == (1 if other.images else 0)


def test_what_was_used_least_recently_is_evicted_first_and_from_its_end() -> None:
    blocks = BlockManager(5, 2)
    for token_ids in ([1, 1, 1, 1], [2, 2, 2, 2]):
        sequence = sequence_of(token_ids)
        blocks.admit(sequence)
        compute(blocks, sequence)
        blocks.release(sequence)

    last = sequence_of([3, 3, 3])  # takes the free block and one more: the end of the older chain
    blocks.admit(last)
    blocks.release(last)

    for token_ids, num_kept in (([1, 1, 1, 1, 9], 2), ([2, 2, 2, 2, 9], 4)):
        again = sequence_of(token_ids)
        assert blocks.admit(again)
        assert again.num_computed == num_kept
        blocks.release(again)


def test_nothing_is_shared_where_sharing_is_off() -> None:
    blocks = BlockManager(10, 2, is_sharing=False)
    for name in "ab":
        sequence = sequence_of([1, 2, 3, 4, 5], name=name)
        blocks.admit(sequence)
        assert sequence.num_computed == 0
        compute(blocks, sequence)


def leaked(blocks: BlockManager, held: Sequence) -> list[Sequence]:
    return []


def held_twice(blocks: BlockManager, held: Sequence) -> list[Sequence]:
    held.block_table[1] = held.block_table[0]
    return [held]


def shared_wrongly(blocks: BlockManager, held: Sequence) -> list[Sequence]:
    other = sequence_of([7], name="two")
    other.block_table = held.block_table[:1]
    return [held, other]


def taken_from_the_free(blocks: BlockManager, held: Sequence) -> list[Sequence]:
    held.block_table.append(next(b for b in range(4) if b not in held.block_table))
    return [held]


@pytest.mark.parametrize("damage", [leaked, held_twice, shared_wrongly, taken_from_the_free])
def test_check_finds_what_is_wrong(damage) -> None:
    blocks = BlockManager(4, 2)
    held = sequence_of([1, 2, 3])
    blocks.admit(held)
    blocks.check([held])

    with pytest.raises(BlockAccountingError):
        blocks.check(damage(blocks, held))
