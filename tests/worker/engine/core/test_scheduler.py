"""Tests of the scheduler: which tokens of which sequences each step computes."""

from __future__ import annotations

import math
import random

import pytest
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.scheduler import Scheduler


class Bench:
    """A scheduler with a fake model that always samples token 7."""

    def __init__(
        self,
        *,
        num_blocks: int = 100,
        max_num_sequences: int = 4,
        max_batch_tokens: int = 10,
        is_sharing: bool = False,
        encoder_cost: float = 0.0,
        max_token_gap_s: float = math.inf,
    ) -> None:
        self.blocks = BlockManager(num_blocks, 2, is_sharing=is_sharing)
        self.encoded: set[tuple[str, str]] = set()
        self.scheduler = Scheduler(
            self.blocks,
            max_num_sequences=max_num_sequences,
            max_batch_tokens=max_batch_tokens,
            encoded=self.encoded,
            encoder_cost=encoder_cost,
            max_token_gap_s=max_token_gap_s,
        )

    def add(
        self, name: str, num_tokens: int, *images: ImageSpan, token_id: int = 1, priority: int = 0
    ) -> Sequence:
        sequence = Sequence(
            seq_id=name,
            prompt_ids=[token_id] * num_tokens,
            max_new_tokens=99,
            images=list(images),
            priority=priority,
        )
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> dict[str, tuple[int, int]]:
        chunks = self.scheduler.schedule().chunks
        for chunk in chunks:
            is_last = chunk.is_last
            chunk.sequence.num_computed = chunk.end
            self.blocks.cache_full_blocks(chunk.sequence)
            if is_last:
                chunk.sequence.output_ids.append(7)
        self.blocks.check(self.scheduler)
        return {chunk.sequence.seq_id: (chunk.start, chunk.end) for chunk in chunks}


def test_a_step_computes_no_more_than_its_token_budget() -> None:
    bench = Bench()
    for name in "abc":
        bench.add(name, 7)

    assert bench.step() == {"a": (0, 7), "b": (0, 3)}
    assert bench.step() == {"a": (7, 8), "b": (3, 7), "c": (0, 5)}


def test_a_running_stream_gets_its_token_in_every_step_of_a_long_prompt() -> None:
    bench = Bench()
    bench.add("stream", 2)
    bench.step()
    bench.add("long", 50)

    steps = [bench.step() for _ in range(5)]

    assert [step["stream"] for step in steps] == [(n, n + 1) for n in range(2, 7)]
    assert [step["long"] for step in steps] == [(n, n + 9) for n in range(0, 45, 9)]


def test_a_waiting_sequence_is_admitted_when_a_slot_becomes_free() -> None:
    bench = Bench(max_num_sequences=2)
    first, _, _ = bench.add("a", 2), bench.add("b", 2), bench.add("c", 2)

    assert bench.step().keys() == {"a", "b"}
    bench.scheduler.remove(first)
    assert bench.step().keys() == {"b", "c"}


def test_a_prompt_waits_until_there_are_enough_free_blocks_for_all_of_it() -> None:
    bench = Bench(num_blocks=6)
    first = bench.add("a", 6)
    bench.add("b", 6)

    assert bench.step() == {"a": (0, 6)}
    assert bench.step() == {"a": (6, 7)}
    bench.scheduler.remove(first)
    assert bench.step() == {"b": (0, 6)}


def test_no_sequence_overtakes_one_that_waits_for_blocks() -> None:
    bench = Bench(num_blocks=6)
    bench.add("a", 6)
    bench.add("large", 10)
    bench.add("small", 1)

    assert bench.step().keys() == {"a"}


def test_the_latest_sequence_is_preempted_and_resumed_first() -> None:
    bench = Bench(num_blocks=7)
    old, young = bench.add("old", 4), bench.add("young", 4)
    late = bench.add("late", 3)
    steps = [bench.step()]
    while bench.scheduler.num_preemptions == 0:
        steps.append(bench.step())

    assert steps[0].keys() == {"old", "young"}
    assert steps[-1].keys() == {"old"}
    assert young.block_table == [] and young.num_computed == 0
    assert list(bench.scheduler.waiting) == [young, late]

    bench.scheduler.remove(old)
    chunk = bench.step()["young"]
    assert chunk == (0, young.num_tokens - 1)  # the prompt and the output generated so far


def test_the_highest_priority_is_admitted_first_and_preempted_last() -> None:
    bench = Bench(num_blocks=7)
    bench.add("low", 4, priority=-1)
    bench.add("early", 4)
    bench.add("late", 4)
    urgent = bench.add("urgent", 4, priority=1)

    assert bench.step().keys() == {"urgent", "early"}
    while bench.scheduler.num_preemptions == 0:
        bench.step()
    assert bench.scheduler.running == [urgent]
    assert [each.seq_id for each in bench.scheduler.waiting] == ["early", "late", "low"]


def test_prefill_of_the_higher_priority_sequence_continues_first() -> None:
    bench = Bench()
    bench.add("old", 15)
    bench.step()
    bench.add("urgent", 25, priority=1)

    assert bench.step() == {"urgent": (0, 10)}
    assert bench.step() == {"urgent": (10, 20)}
    assert bench.step() == {"urgent": (20, 25), "old": (10, 15)}


def test_a_higher_priority_sequence_takes_the_slot_of_the_latest_one() -> None:
    bench = Bench(max_num_sequences=3)
    for name in "abc":
        bench.add(name, 2)
    bench.step()
    bench.add("urgent", 2, priority=1)

    assert bench.step().keys() == {"a", "b", "urgent"}
    assert [sequence.seq_id for sequence in bench.scheduler.waiting] == ["c"]


def test_a_higher_priority_sequence_takes_the_blocks_of_the_latest_one() -> None:
    bench = Bench(num_blocks=12, max_batch_tokens=20)
    for name in "abc":
        bench.add(name, 5)
    bench.step()
    bench.add("urgent", 6, priority=1)

    step = bench.step()
    assert step["urgent"] == (0, 6)
    assert step.keys() == {"a", "b", "urgent"}


def test_a_sequence_of_equal_priority_preempts_no_other() -> None:
    bench = Bench(max_num_sequences=2)
    for name in "abc":
        bench.add(name, 2)
        bench.step()

    assert bench.step().keys() == {"a", "b"}
    assert bench.scheduler.num_preemptions == 0


def test_a_higher_priority_sequence_is_scheduled_before_partial_prompts() -> None:
    bench = Bench()
    bench.add("long", 50)
    bench.step()
    bench.add("urgent", 8, priority=1)

    assert bench.step() == {"urgent": (0, 8), "long": (10, 12)}


def test_a_sequence_that_waits_for_a_shared_prefix_can_be_overtaken() -> None:
    bench = Bench(is_sharing=True)
    bench.add("first", 8)
    bench.add("duplicate", 9)
    bench.add("other", 2, token_id=2)

    assert bench.step() == {"first": (0, 8), "other": (0, 2)}
    assert bench.step() == {"first": (8, 9), "other": (2, 3), "duplicate": (8, 9)}


def test_a_sequence_that_waits_for_a_prefix_continues_if_the_other_is_removed() -> None:
    bench = Bench(is_sharing=True)
    first = bench.add("first", 20)
    bench.add("duplicate", 20)
    assert bench.step() == {"first": (0, 10)}

    bench.scheduler.remove(first)

    assert bench.step() == {"duplicate": (10, 20)}


def test_a_sequence_can_fill_the_whole_kv_cache() -> None:
    bench = Bench(num_blocks=4)
    bench.add("a", 3)
    bench.add("b", 3)

    while bench.scheduler.running == [] or bench.scheduler.running[0].num_tokens < 8:
        bench.step()

    assert [sequence.seq_id for sequence in bench.scheduler.running] == ["a"]


def test_an_image_uses_the_encoder_budget_once_and_the_next_one_waits() -> None:
    bench = Bench(max_batch_tokens=10)
    bench.add("a", 9, ImageSpan(1, 3, "p"), ImageSpan(5, 3, "p"))
    bench.add("b", 9, ImageSpan(0, 8, "q"))

    assert bench.step() == {"a": (0, 9)}
    bench.encoded.add(("", "p"))
    assert bench.step() == {"a": (9, 10), "b": (0, 9)}


def test_tokens_before_an_image_that_has_to_wait_are_computed() -> None:
    bench = Bench(max_batch_tokens=20)
    bench.add("a", 11, ImageSpan(1, 10, "p"))
    bench.add("b", 14, ImageSpan(2, 11, "q"))

    assert bench.step() == {"a": (0, 11), "b": (0, 2)}
    bench.encoded.add(("", "p"))
    assert bench.step() == {"a": (11, 12), "b": (2, 14)}


def test_an_image_larger_than_the_budget_is_still_computed() -> None:
    bench = Bench(max_batch_tokens=10)
    bench.add("a", 40, ImageSpan(2, 30, "p"))

    assert bench.step() == {"a": (0, 10)}
    bench.encoded.add(("", "p"))
    assert bench.step() == {"a": (10, 20)}


def test_encoding_an_image_uses_the_token_budget() -> None:
    bench = Bench(max_batch_tokens=20, encoder_cost=0.5)
    bench.add("a", 12, ImageSpan(1, 10, "p"))
    bench.add("b", 9, ImageSpan(0, 8, "q"))

    assert bench.step() == {"a": (0, 12)}  # 12 tokens and 5 for encoding; the image of b would take 4 of 3
    bench.encoded.add(("", "p"))
    assert bench.step() == {"a": (12, 13), "b": (0, 9)}


def test_all_features_of_a_grid_use_the_budget_even_if_the_prompt_has_fewer_tokens() -> None:
    bench = Bench(max_batch_tokens=30, encoder_cost=0.5)
    bench.add("a", 40, ImageSpan(2, 10, "p", num_features=40))

    assert bench.step() == {"a": (0, 10)}  # 10 tokens and 20 for encoding


def test_encoding_shortens_the_chunk_that_contains_the_image() -> None:
    bench = Bench(max_batch_tokens=20, encoder_cost=0.5)
    bench.add("a", 40, ImageSpan(2, 10, "p"), ImageSpan(13, 20, "q"))

    assert bench.step() == {"a": (0, 13)}  # 5 for the first image; the second would take 10 of 2
    bench.encoded.add(("", "p"))
    assert bench.step() == {"a": (13, 23)}  # 10 for the second image
    bench.encoded.add(("", "q"))
    assert bench.step() == {"a": (23, 40)}


def test_an_image_that_costs_more_than_the_budget_is_encoded_before_all_other_tokens() -> None:
    bench = Bench(max_batch_tokens=10, encoder_cost=1.0)
    bench.add("a", 20, ImageSpan(2, 15, "p"))
    bench.add("b", 20, ImageSpan(0, 12, "q"))

    assert bench.step() == {"a": (0, 2)}
    assert bench.step() == {"a": (2, 12)}
    bench.encoded.add(("", "p"))
    assert bench.step() == {"a": (12, 20)}
    assert bench.step() == {"a": (20, 21), "b": (0, 9)}


@pytest.mark.parametrize(("max_batch_tokens", "num_images"), [(512, 1), (2048, 3), (8192, 13)])
def test_a_step_encodes_as_many_new_images_as_its_budget_allows(
    max_batch_tokens: int, num_images: int
) -> None:
    """The numbers are those of LLaVA-1.5-7B: an image of 576 tokens takes as long to encode as 28 tokens."""
    bench = Bench(
        num_blocks=10_000, max_num_sequences=16, max_batch_tokens=max_batch_tokens, encoder_cost=0.048
    )
    for number in range(16):
        bench.add(str(number), 620, ImageSpan(35, 576, str(number)))

    chunks = bench.step()

    assert sum(end > 35 for _, end in chunks.values()) == num_images
    num_tokens = sum(end - start for start, end in chunks.values())
    assert 0.9 * max_batch_tokens <= num_tokens + 28 * num_images <= max_batch_tokens


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_waits_for_at_most_one_budget_and_one_image_between_tokens(seed: int) -> None:
    """Every stream gets a token in every step, and no step takes longer than its budget and one image."""
    rng = random.Random(seed)
    cost = rng.choice([0.05, 0.3, 1.0, 2.0])
    bench = Bench(num_blocks=3000, max_num_sequences=8, max_batch_tokens=24, encoder_cost=cost)
    lengths: dict[tuple[str, str], int] = {}
    for number in range(30):
        images, end = [], rng.randint(0, 5)
        for index in range(rng.randint(0, 3)):
            images.append(ImageSpan(end, rng.randint(1, 30), f"{number}.{index}"))
            lengths["", images[-1].content] = images[-1].length
            end = images[-1].end + rng.randint(0, 4)
        bench.add(str(number), end + rng.randint(1, 6), *images).max_new_tokens = rng.randint(1, 8)
    while len(bench.scheduler):
        streams = {each.seq_id for each in bench.scheduler.running if each.num_uncomputed == 1}
        before = {each: each.num_computed for each in bench.scheduler}
        chunks = bench.step()
        new = {
            ("", image.content)
            for each, start in before.items()
            if each.seq_id in chunks
            for image in each.images_within(start, each.num_computed)
        } - bench.encoded
        bench.encoded |= new
        costs = [math.ceil(cost * lengths[key]) for key in new]
        num_tokens = sum(end - start for start, end in chunks.values())
        assert streams <= chunks.keys()
        assert num_tokens + sum(costs) <= 24 or (len(new) == 1 and num_tokens <= 24)
        for each in [each for each in bench.scheduler.running if len(each.output_ids) >= each.max_new_tokens]:
            bench.scheduler.remove(each)


def test_a_removed_sequence_frees_its_blocks_immediately() -> None:
    bench = Bench()
    running, waiting = bench.add("a", 6), bench.add("b", 200)
    bench.step()

    bench.scheduler.remove(running)
    bench.scheduler.remove(waiting)

    assert bench.blocks.num_free == 100
    assert bench.step() == {}


def test_a_token_budget_below_the_number_of_sequences_is_rejected() -> None:
    with pytest.raises(ValueError, match="max_num_sequences is 4, but a step has at most 3 tokens"):
        Bench(max_num_sequences=4, max_batch_tokens=3)
