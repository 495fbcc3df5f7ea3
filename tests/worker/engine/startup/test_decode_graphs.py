"""Decoding by recordings gives the tokens that computing gives, whatever the number of rows.

Without a GPU nothing is recorded, what would be is called again: over the same tensors, buckets and padding.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.model.attention.kv_cache import ExactKVCache
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.gpu.cuda_graphs import NotRecordable, buckets_up_to, record_as_call, recorded
from llava_worker.model.gpu.decode_graphs import DecodeGraphs

from tests.worker.checkpoints import random_prompt
from tests.worker.model.definition import DefinitionKernel

MAX_ROWS = 5


class RecordedRunner(ModelRunner):
    """With recordings of up to MAX_ROWS rows; counts the steps that they made."""

    num_replayed = 0

    def __init__(self, model, cache, backend, encoder_cache) -> None:
        backend = PagedBackend(DefinitionKernel())
        context = cache.num_blocks * cache.block_size
        graphs = DecodeGraphs(
            model, cache, backend, record_as_call, max_rows=MAX_ROWS, context_length=context
        )
        graphs.record_all()
        super().__init__(model, cache, backend, encoder_cache)
        self.graphs = graphs

    def _replay(self, batch):
        logits = super()._replay(batch)
        type(self).num_replayed += logits is not None
        return logits


@pytest.fixture
def prompts():
    rng = np.random.default_rng(31)
    return {name: random_prompt(rng, num_images=name in "ac") for name in "abcdefg"}


@pytest.mark.parametrize("num", [1, 3, 4, 7])
def test_the_tokens_are_those_of_computing(make_engine, make_sequence, run, prompts, num: int) -> None:
    def answers(**options: object) -> dict[str, list[int]]:
        sequences = [
            make_sequence(prompt, seq_id=name, temperature=0.8 * (name == "b"), seed=5)
            for name, prompt in list(prompts.items())[:num]
        ]
        return run(make_engine(num_blocks=128, **options), sequences)

    RecordedRunner.num_replayed = 0
    recorded = answers(runner=RecordedRunner)

    assert RecordedRunner.num_replayed > 0
    assert recorded == answers()


def test_rows_left_over_write_nothing_that_anybody_reads(make_engine, make_sequence, run, prompts) -> None:
    """Three rows in a bucket of four, over a cache whose every other slot shows when it is touched."""
    engine = make_engine(runner=RecordedRunner, num_blocks=128, is_sharing_prefixes=False)
    cache = engine._runner.cache
    assert isinstance(cache, ExactKVCache)

    run(engine, [make_sequence(prompts[name], seq_id=name, max_new_tokens=6) for name in "bde"])

    # Recording wrote to slot 0; beside it only what three prompts and answers need was written.
    num_written = int(cache.keys(0)[:, 0, 0].isfinite().sum())
    num_needed = sum(len(prompts[name].token_ids) + 6 - 1 for name in "bde")
    assert num_written in (num_needed, num_needed + 1)


def test_more_rows_than_were_recorded_are_computed(model) -> None:
    text = model.config.text_config
    cache = ExactKVCache(
        8,
        4,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    graphs = DecodeGraphs(
        model, cache, PagedBackend(DefinitionKernel()), record_as_call, max_rows=2, context_length=32
    )
    rows = [torch.arange(3), torch.zeros(3, dtype=torch.int64), torch.arange(3) * 4, torch.arange(3)[:, None]]
    assert graphs.logits(*(each[:2] for each in rows)) is None  # nothing is recorded yet
    graphs.record_all()

    assert graphs.logits(*(each[:2] for each in rows)) is not None
    assert graphs.logits(*rows) is None


class Scripted:
    """Recordings that fail as they are told."""

    def __init__(self, error: RuntimeError | None) -> None:
        self.error = error

    def record_all(self) -> None:
        if self.error is not None:
            raise self.error


def test_what_cannot_be_recorded_is_computed_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    well = Scripted(None)
    with caplog.at_level(logging.INFO):
        assert recorded(well, "decoding") is well
        assert recorded(Scripted(torch.OutOfMemoryError("CUDA out of memory")), "decoding") is None
    assert caplog.messages == [
        "decoding is recorded",
        "decoding is not recorded, which makes it slower: CUDA out of memory",
    ]


def test_decoding_over_attention_that_asks_the_device_is_not_recordable(model, make_engine) -> None:
    cache = make_engine(num_blocks=8)._runner.cache
    graphs = DecodeGraphs(model, cache, SdpaBackend(), record_as_call, max_rows=2, context_length=32)
    with pytest.raises(NotRecordable, match="attention by sdpa cannot be"):
        graphs.record_all()


@pytest.mark.parametrize("most", [1, 2, 5, 8, 16, 100, 256, 1000])
def test_buckets_grow_up_to_the_most_rows_and_little_is_computed_for_nobody(most: int) -> None:
    buckets = buckets_up_to(most)

    assert buckets[-1] == most and buckets == sorted(set(buckets))
    for before, after in zip(buckets, buckets[1:], strict=False):
        assert after <= 2 * before if after <= 16 else after <= 1.5 * before
    assert len(buckets) <= 4 + most / 8
