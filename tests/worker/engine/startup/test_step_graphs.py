"""Short steps give the same tokens with CUDA graphs as without them, whatever they contain.

These tests run without a GPU. Instead of a graph, they replay a function call with the same tensors, buckets
and padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.input_batch import MAX_READS, Batch
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.startup.graph_capture import max_graph_tokens
from llava_worker.model.attention.base import AttentionBackend, AttentionPlan, DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.gpu.cuda_graphs import EagerPool, capture_sizes
from llava_worker.model.gpu.step_graphs import StepGraphs, is_capturable
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.drafters import ScriptedDrafter
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.model.reference_kernel import ReferenceKernel

MAX_TOKENS = 13
CPU = torch.device("cpu")


class GraphRunner(ModelRunner):
    """A model runner that has graphs for up to MAX_TOKENS tokens and records the steps that replay one."""

    replayed: list[tuple[int, ...]] = []  # the lengths of the rows of each step

    def __init__(
        self, model: Llava, cache: KVCache, backend: AttentionBackend, encoder_cache: EncoderCache
    ) -> None:
        backend = PagedBackend(ReferenceKernel())
        context = cache.num_blocks * cache.block_size
        graphs = [
            StepGraphs(
                *(model, cache, backend, EagerPool()),
                max_tokens=MAX_TOKENS,
                context_length=context,
                is_mixed=is_mixed,
            )
            for is_mixed in (False, True)
        ]
        super().__init__(model, cache, backend, encoder_cache)
        self.graphs, self.mixed_graphs = graphs

    def _replay(self, batch: Batch) -> torch.Tensor | None:
        logits = super()._replay(batch)
        if logits is not None:
            assert len(batch.token_ids) <= MAX_TOKENS
            self.replayed.append(batch.rows.query_lens)
        return logits


@pytest.fixture(autouse=True)
def replayed() -> list[tuple[int, ...]]:
    GraphRunner.replayed = []
    return GraphRunner.replayed


@pytest.fixture
def prompts() -> dict[str, Prompt]:
    rng = np.random.default_rng(31)
    return {name: random_prompt(rng, num_images=name in "ac") for name in "abcdefg"}


@pytest.mark.parametrize("num", [1, 3, 4, 7])
def test_replayed_graphs_give_the_same_tokens(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    prompts: dict[str, Prompt],
    replayed: list[tuple[int, ...]],
    num: int,
) -> None:
    def outputs(**options: Any) -> dict[str, list[int]]:
        sequences = [
            make_sequence(prompt, seq_id=name, temperature=0.8 * (name == "b"), seed=5)
            for name, prompt in list(prompts.items())[:num]
        ]
        return run(make_engine(num_blocks=128, **options), sequences)

    expected = outputs()

    assert outputs(runner=GraphRunner) == expected
    assert any(set(lens) == {1} for lens in replayed)


def test_a_step_with_prompts_and_decodes_is_replayed(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, replayed: list[tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(5)
    texts = [Prompt([1, *rng.integers(3, 120, length).tolist()]) for length in (30, 7, 10, 5)]

    def outputs(**options: Any) -> dict[str, list[int]]:
        engine = make_engine(max_batch_tokens=MAX_TOKENS, **options)
        return run(engine, [make_sequence(text, seq_id=str(index)) for index, text in enumerate(texts)])

    expected = outputs()

    assert outputs(runner=GraphRunner) == expected
    assert (MAX_TOKENS,) in replayed  # part of a prompt, after which no token is sampled
    assert any(lens[0] == 1 < lens[-1] for lens in replayed)  # decodes and prompts


def test_a_step_with_drafts_is_replayed(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, replayed: list[tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(5)
    texts = {name: Prompt([1, *rng.integers(3, 120, 6).tolist()]) for name in "ab"}

    def outputs(**options: Any) -> dict[str, list[int]]:
        return run(make_engine(**options), [make_sequence(text, seq_id=n) for n, text in texts.items()])

    expected = outputs()
    drafter = ScriptedDrafter(expected, wrong_every=4)

    assert outputs(runner=GraphRunner, drafter=drafter) == expected
    assert any(num_accepted == 3 for _, num_accepted in drafter.acceptances)
    assert any(num_accepted < num_drafted for num_drafted, num_accepted in drafter.acceptances)
    assert any(1 < lens[0] <= 9 for lens in replayed)


def test_steps_that_need_more_than_logits_are_not_replayed(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, replayed: list[tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(5)
    scored = make_sequence(Prompt([1, 5, 6, 7]), seq_id="scored", max_new_tokens=1)
    scored.num_prompt_logprobs = 0
    embedded = make_sequence(Prompt([1, 5, 6, 7]), seq_id="embedded", max_new_tokens=1)
    embedded.is_embedding = True
    pictured = make_sequence(random_prompt(rng, num_images=1), seq_id="pictured", max_new_tokens=1)
    for sequence in (scored, embedded, pictured):
        engine = make_engine(runner=GraphRunner, max_batch_tokens=64)
        engine.add(sequence)
        while engine.num_sequences:
            engine.step()

    assert replayed == []


def test_a_step_that_would_read_long_contexts_repeatedly_is_not_replayed() -> None:
    def build(start: int, end: int) -> Batch:
        sequence = Sequence(seq_id="", prompt_ids=[0] * end, max_new_tokens=1)
        sequence.block_table = list(range(-(-end // 16)))
        return Batch.build([Chunk(sequence, start, end)], block_size=16, device=CPU)

    context = MAX_READS // 8

    assert build(context - 8, context).is_short
    assert not build(context - 8, context + 1).is_short
    assert build(10 * MAX_READS - 1, 10 * MAX_READS).is_short  # each row of a decode reads its context once


def test_padding_rows_do_not_overwrite_used_slots(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: dict[str, Prompt]
) -> None:
    """Three rows use the bucket for four rows.

    Unused KV cache slots contain NaN, so that writes are detected.
    """
    engine = make_engine(runner=GraphRunner, num_blocks=128, is_sharing_prefixes=False)
    cache = engine._runner.cache

    run(engine, [make_sequence(prompts[name], seq_id=name, max_new_tokens=6) for name in "bde"])

    # Capture has written to slot 0. Apart from that, only the slots of the three prompts and their outputs
    # have been written to.
    num_written = int(cache.layer(0).keys[:, 0, 0].isfinite().sum())
    num_needed = sum(len(prompts[name].token_ids) + 6 - 1 for name in "bde")
    assert num_written in (num_needed, num_needed + 1)


class RecordingBackend(PagedBackend):
    """Records for which kinds of steps plans are created."""

    def __init__(self) -> None:
        super().__init__(ReferenceKernel())
        self.mixed: list[bool] = []

    def decode_plan(
        self, metadata: DecodeMetadata, cache: KVCache, *, is_mixed: bool = False
    ) -> AttentionPlan | None:
        self.mixed.append(is_mixed)
        return super().decode_plan(metadata, cache, is_mixed=is_mixed)


@pytest.mark.parametrize("is_mixed", [True, False])
def test_the_backend_knows_whether_rows_may_belong_to_the_same_sequence(
    model: Llava, make_engine: MakeEngine, is_mixed: bool
) -> None:
    """A kernel that writes and reads keys in one launch must not be used for such rows."""
    backend, cache = RecordingBackend(), make_engine()._runner.cache
    StepGraphs(*(model, cache, backend, EagerPool()), max_tokens=2, context_length=16, is_mixed=is_mixed)
    assert set(backend.mixed) == {is_mixed}


def test_steps_with_sdpa_attention_are_not_captured(model: Llava, make_engine: MakeEngine) -> None:
    for is_int8 in (False, True):
        cache = make_engine(is_int8=is_int8)._runner.cache
        assert is_capturable(PagedBackend(ReferenceKernel()), cache, CPU)
        assert not is_capturable(SdpaBackend(), cache, CPU)


@pytest.mark.parametrize(
    ("max_num_sequences", "max_batch_tokens", "expected"),
    [(16, 2048, 128), (256, 2048, 320), (1024, 1024, 1024)],
)
def test_the_largest_graph_has_room_for_all_sequences_and_drafts(
    max_num_sequences: int, max_batch_tokens: int, expected: int
) -> None:
    assert max_graph_tokens(max_num_sequences, max_batch_tokens) == expected


@pytest.mark.parametrize("max_rows", [1, 2, 5, 8, 16, 100, 256, 1000])
def test_buckets_reach_the_maximum_and_limit_padding(max_rows: int) -> None:
    buckets = capture_sizes(max_rows)

    assert buckets[-1] == max_rows and buckets == sorted(set(buckets))
    for before, after in zip(buckets, buckets[1:], strict=False):
        assert after <= 2 * before if after <= 16 else after <= 1.5 * before
    assert len(buckets) <= 4 + max_rows / 8
