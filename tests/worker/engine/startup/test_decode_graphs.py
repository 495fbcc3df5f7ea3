"""Tests that, for any number of rows, decoding gives the same tokens with CUDA graphs as without them.

These tests run without a GPU. Instead of a graph, they replay a function call with the same tensors, buckets
and padding.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.input_batch import Batch
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.gpu.cuda_graphs import NotCapturable, capture_sizes, eager_capture, try_capture
from llava_worker.model.gpu.decode_graphs import DecodeGraphs
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.model.reference_kernel import ReferenceKernel

MAX_ROWS = 5


class GraphRunner(ModelRunner):
    """A model runner that has graphs for up to MAX_ROWS rows and counts the steps that replay one."""

    num_replayed = 0

    def __init__(
        self, model: Llava, cache: KVCache, backend: AttentionBackend, encoder_cache: EncoderCache
    ) -> None:
        backend = PagedBackend(ReferenceKernel())
        context = cache.num_blocks * cache.block_size
        graphs = DecodeGraphs(model, cache, backend, eager_capture, max_rows=MAX_ROWS, context_length=context)
        graphs.capture_all()
        super().__init__(model, cache, backend, encoder_cache)
        self.graphs = graphs

    def _replay(self, batch: Batch) -> torch.Tensor | None:
        logits = super()._replay(batch)
        type(self).num_replayed += logits is not None
        return logits


@pytest.fixture
def prompts() -> dict[str, Prompt]:
    rng = np.random.default_rng(31)
    return {name: random_prompt(rng, num_images=name in "ac") for name in "abcdefg"}


@pytest.mark.parametrize("num", [1, 3, 4, 7])
def test_replayed_graphs_give_the_same_tokens(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: dict[str, Prompt], num: int
) -> None:
    def outputs(**options: Any) -> dict[str, list[int]]:
        sequences = [
            make_sequence(prompt, seq_id=name, temperature=0.8 * (name == "b"), seed=5)
            for name, prompt in list(prompts.items())[:num]
        ]
        return run(make_engine(num_blocks=128, **options), sequences)

    GraphRunner.num_replayed = 0
    replayed = outputs(runner=GraphRunner)

    assert GraphRunner.num_replayed > 0
    assert replayed == outputs()


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


def test_no_graph_is_replayed_for_more_rows_than_captured(model: Llava) -> None:
    text = model.config.text_config
    spec = KVCacheSpec.for_model(text, num_blocks=8, block_size=4, dtype=torch.float32)
    cache = KVCache(spec, torch.device("cpu"))
    graphs = DecodeGraphs(
        model, cache, PagedBackend(ReferenceKernel()), eager_capture, max_rows=2, context_length=32
    )
    rows = [torch.arange(3), torch.zeros(3, dtype=torch.int64), torch.arange(3) * 4, torch.arange(3)[:, None]]
    assert graphs.logits(*(each[:2] for each in rows)) is None  # nothing has been captured yet
    graphs.capture_all()

    assert graphs.logits(*(each[:2] for each in rows)) is not None
    assert graphs.logits(*rows) is None


class FailingGraphs:
    """Graphs whose capture fails with ``error``."""

    def __init__(self, error: RuntimeError | None) -> None:
        self.error = error

    def capture_all(self) -> None:
        if self.error is not None:
            raise self.error


def test_a_failed_capture_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    graphs = FailingGraphs(None)
    with caplog.at_level(logging.INFO):
        assert try_capture(graphs, "decoding") is graphs
        assert try_capture(FailingGraphs(torch.OutOfMemoryError("CUDA out of memory")), "decoding") is None
    assert caplog.messages == [
        "captured CUDA graphs for decoding",
        "CUDA graph capture failed for decoding, so performance will be lower: CUDA out of memory",
    ]


def test_decoding_with_sdpa_attention_cannot_be_captured(model: Llava, make_engine: MakeEngine) -> None:
    cache = make_engine(num_blocks=8)._runner.cache
    graphs = DecodeGraphs(model, cache, SdpaBackend(), eager_capture, max_rows=2, context_length=32)
    with pytest.raises(NotCapturable, match="sdpa attention does not support CUDA graphs"):
        graphs.capture_all()


@pytest.mark.parametrize("max_rows", [1, 2, 5, 8, 16, 100, 256, 1000])
def test_buckets_reach_the_maximum_and_limit_padding(max_rows: int) -> None:
    buckets = capture_sizes(max_rows)

    assert buckets[-1] == max_rows and buckets == sorted(set(buckets))
    for before, after in zip(buckets, buckets[1:], strict=False):
        assert after <= 2 * before if after <= 16 else after <= 1.5 * before
    assert len(buckets) <= 4 + max_rows / 8
