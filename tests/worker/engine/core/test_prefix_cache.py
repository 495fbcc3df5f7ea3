"""Tests that prefixes are reused up to and including the last matching token and are not computed twice."""

from __future__ import annotations

import pytest
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.core.block_manager import BlockCopy, BlockManager

from tests.worker.engine.core.sequences import cache_prompt, compute, sequence_of


def test_a_cached_prompt_is_reused_up_to_its_last_token() -> None:
    blocks = BlockManager(10, 2)
    first = sequence_of([1, 2, 3, 4])
    blocks.allocate(first)
    compute(blocks, first)
    second = sequence_of([1, 2, 3, 4], name="two")

    copies = blocks.allocate(second)

    assert second.num_computed == 3
    assert second.block_table[0] == first.block_table[0]
    assert second.block_table[1] != first.block_table[1]
    assert copies == [BlockCopy(first.block_table[1], second.block_table[1], 1)]


@pytest.mark.parametrize(
    ("other", "num_shared"),
    [
        (sequence_of([1, 2, 3, 9, 5, 6, 7]), 3),
        (sequence_of([1, 2, 3, 9]), 3),
        (sequence_of([9, 2, 3, 4, 5, 6]), 0),
        (sequence_of([1, 2, 3, 4, 5, 6], scope="other"), 0),
        (sequence_of([1, 2, 3, 4, 5, 6, 7]), 6),
    ],
    ids=["fourth token", "short prompt", "first token", "scope", "computed tokens only"],
)
def test_a_prompt_is_reused_up_to_the_first_difference(other: Sequence, num_shared: int) -> None:
    blocks = BlockManager(10, 4)
    first = sequence_of([1, 2, 3, 4, 5, 6, 7, 8])
    blocks.allocate(first)
    first.num_computed = 6  # the chunk ends in the middle of a block, which must be copied to be shared
    blocks.cache_full_blocks(first)

    blocks.allocate(other)

    assert other.num_computed == num_shared
    assert len(set(first.block_table) & set(other.block_table)) == num_shared // 4


@pytest.mark.parametrize(("digest", "num_shared"), [("p", 4), ("q", 2), ("", 2)])
def test_a_copy_can_end_within_an_image_if_the_images_are_equal(digest: str, num_shared: int) -> None:
    blocks = BlockManager(10, 8)
    first = sequence_of([1, 2, 7, 7, 7, 5], digest="p")
    blocks.allocate(first)
    first.num_computed = 4
    blocks.cache_full_blocks(first)
    other = sequence_of([1, 2, 7, 7, 7, 6], digest=digest)

    blocks.allocate(other)

    assert other.num_computed == num_shared


def test_image_tokens_match_only_at_the_same_position_in_the_image() -> None:
    blocks = BlockManager(10, 2)
    first = sequence_of([1, 2, 7, 7, 7, 5], digest="p")
    blocks.allocate(first)
    compute(blocks, first)
    shifted = sequence_of([1, 2, 7, 7, 7, 5], digest="p", name="two")
    shifted.images = [ImageSpan(1, 4, "p")]

    blocks.allocate(shifted)

    assert shifted.num_computed == 1


def test_the_partial_last_block_of_an_output_is_cached() -> None:
    blocks = BlockManager(10, 4)
    first = sequence_of([1, 2, 3])
    blocks.allocate(first)
    first.output_ids += [4, 5, 6, 7]
    blocks.append_slots(first)
    first.num_computed = 6  # the last token was sampled but not computed
    blocks.cache_full_blocks(first)
    blocks.free(first)
    second = sequence_of([1, 2, 3, 4, 5, 6, 7, 8, 9])

    blocks.allocate(second)

    assert second.num_computed == 6


def test_the_longest_match_of_many_is_found() -> None:
    blocks = BlockManager(20, 8)
    for end in ([5], [3, 5], [3, 4], [3, 4, 1, 1], [3, 4, 9, 1], [9]):
        cache_prompt(blocks, 1, *end)
    other = sequence_of([1, 3, 4, 5, 6, 7])

    blocks.allocate(other)

    assert other.num_computed == 3


def test_a_sequence_waits_for_a_prefix_that_another_is_about_to_compute() -> None:
    blocks = BlockManager(20, 4)
    first = sequence_of([1, 2, 3, 4, 5, 6, 7, 8])
    blocks.allocate(first)
    duplicate, unrelated = sequence_of([1, 2, 3, 4, 5, 9]), sequence_of([1, 2, 9, 4, 5, 9])
    other_scope = sequence_of(duplicate.prompt_ids, scope="other")
    urgent = sequence_of(duplicate.prompt_ids)
    urgent.priority = 1

    assert [blocks.is_prefix_pending(each) for each in (duplicate, unrelated, other_scope, urgent)] == [
        True,
        False,
        False,
        False,
    ]

    first.num_computed = 4
    blocks.cache_full_blocks(first)
    assert not blocks.is_prefix_pending(duplicate)  # a single token is not worth waiting for


def test_a_sequence_with_a_partial_match_waits_for_the_following_tokens() -> None:
    """This happens if all prompts begin with the same sentence and some continue with the same image."""
    blocks = BlockManager(20, 4)
    earlier = sequence_of([1, 2, 3, 4, 5, 6, 50])
    blocks.allocate(earlier)
    earlier.num_computed = 7
    blocks.cache_full_blocks(earlier)
    blocks.free(earlier)
    first = sequence_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    blocks.allocate(first)
    assert first.num_computed == 6

    assert blocks.is_prefix_pending(sequence_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 60]))
    assert not blocks.is_prefix_pending(
        sequence_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 60, 61])
    )  # one token fewer is shared, which is not enough
    first.num_computed = 10
    assert not blocks.is_prefix_pending(sequence_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 60]))


def test_no_sequence_waits_for_a_removed_one() -> None:
    blocks = BlockManager(20, 4)
    first, duplicate = sequence_of([1, 2, 3, 4, 5]), sequence_of([1, 2, 3, 4, 6])
    blocks.allocate(first)
    assert blocks.is_prefix_pending(duplicate)

    blocks.free(first)

    assert not blocks.is_prefix_pending(duplicate)


def test_no_sequence_waits_for_invalidated_blocks() -> None:
    """Invalidated blocks are dropped, so the sequence would wait for them in vain."""
    blocks = BlockManager(20, 4)
    first, broken = (sequence_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) for _ in range(2))
    blocks.allocate(first)
    first.num_computed = 8
    blocks.cache_full_blocks(first)
    blocks.allocate(broken)
    assert broken.num_computed == 8

    blocks.invalidate(broken)
    blocks.free(broken)

    assert not blocks.is_prefix_pending(sequence_of([1, 2, 3, 4, 5]))


def test_the_partial_block_of_an_invalidated_sequence_is_not_reused() -> None:
    blocks = BlockManager(20, 4)
    broken, again = (sequence_of([1, 2, 3, 4, 5, 6, 7]) for _ in range(2))
    blocks.allocate(broken)
    compute(blocks, broken)

    blocks.invalidate(broken)
    blocks.free(broken)
    cache_prompt(blocks, 1, 2, 3, 4)  # the prefix is cached again, so blocks after it could be found

    blocks.allocate(again)
    assert again.num_computed == 4


def test_nothing_is_shared_if_prefix_caching_is_disabled() -> None:
    blocks = BlockManager(10, 2, is_sharing=False)
    for name in "ab":
        sequence = sequence_of([1, 2, 3, 4, 5], name=name)
        assert not blocks.is_prefix_pending(sequence)
        blocks.allocate(sequence)
        assert sequence.num_computed == 0
        compute(blocks, sequence)
        sequence.num_computed = 3
        blocks.free(sequence)
