"""All ranks capture and replay the same graphs in the same order, or none of them does.

These tests run without a GPU. The ranks communicate with gloo, and replay function calls instead of graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine import Sequence
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.input_batch import Batch
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.graph_capture import GraphCapture
from llava_worker.engine.startup.warmup import WarmupError
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.llava import Llava
from torch import Tensor

from tests.worker.checkpoints import Prompt, random_prompt, write_checkpoint
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.parallel.reference_rank import FAILS_AT, MODULE, FailingPool
from tests.worker.engine.parallel.two_ranks import RecordingRunner, TwoRanks, load, logits_of
from tests.worker.model.reference_kernel import ReferenceKernel

TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}  # the order of summation in fp32 differs
MAX_ROWS, MAX_TOKENS = 3, 5
NUM_STEP_GRAPHS = 4 + 3  # for 5, 4, 2 and 1 tokens, and for 3, 2 and 1 rows

StartRanks = Callable[[], TwoRanks]


class CapturingRunner(RecordingRunner):
    """Captures graphs with ``pool``, and counts the steps that replay one."""

    pool = FailingPool()
    num_replayed = 0

    def __init__(
        self, model: Llava, cache: KVCache, backend: AttentionBackend, encoder_cache: EncoderCache
    ) -> None:
        super().__init__(model, cache, PagedBackend(ReferenceKernel()), encoder_cache)
        self.capture = GraphCapture(
            *(model, self.backend, self.pool),
            includes_steps=True,
            max_tiles=2,
            max_rows=MAX_ROWS,
            max_tokens=MAX_TOKENS,
            context_length=cache.num_blocks * cache.block_size,
        )
        self.capture.measure(cache, lambda: 0)
        self.capture.apply(self)

    def _replay(self, batch: Batch) -> Tensor | None:
        logits = super()._replay(batch)
        if logits is not None:
            self.num_replayed += 1
            rows = [chunk.sequence.seq_id for chunk in batch.sampled for _ in range(chunk.num_sampled)]
            for name, row in zip(rows, logits, strict=True):
                self.recorded[name].append(row.clone())
        return logits


@pytest.fixture(autouse=True)
def pool() -> FailingPool:
    CapturingRunner.pool = FailingPool()
    return CapturingRunner.pool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captured")
    write_checkpoint(folder)
    return folder


@pytest.fixture
def start_ranks(folder: Path) -> Iterator[StartRanks]:
    started: list[TwoRanks] = []

    def start() -> TwoRanks:
        started.append(TwoRanks(folder, attention="reference", module=MODULE))
        return started[-1]

    yield start
    for ranks in started:
        ranks.group.close()


@pytest.fixture
def prompts() -> dict[str, Prompt]:
    rng = np.random.default_rng(23)
    return {name: random_prompt(rng, num_images=name in "ac") for name in "abcd"}


@pytest.fixture
def expected(
    folder: Path, make_engine: MakeEngine, make_sequence: MakeSequence, prompts: dict[str, Prompt]
) -> dict[str, Tensor]:
    engine = make_engine(over=load(folder), runner=RecordingRunner, num_blocks=96)
    return logits_of(engine, sequences(make_sequence, prompts))


def sequences(make_sequence: MakeSequence, prompts: dict[str, Prompt]) -> list[Sequence]:
    return [make_sequence(prompt, seq_id=name, ignore_eos=True) for name, prompt in prompts.items()]


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(actual[name], logits, **TOLERANCE)


def runner_of(engine: Engine) -> CapturingRunner:
    runner = engine._runner
    assert isinstance(runner, CapturingRunner)
    return runner


def test_steps_replayed_on_two_ranks_give_the_logits_of_one_process(
    start_ranks: StartRanks,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    prompts: dict[str, Prompt],
    expected: dict[str, Tensor],
    pool: FailingPool,
) -> None:
    """Steps of images and steps with more tokens than the largest graph run between replays.

    The second engine replaces the KV cache of the other rank, so graphs are captured again.
    """
    ranks = start_ranks()
    for _ in range(2):
        engine = make_engine(over=ranks.model, runner=CapturingRunner, num_blocks=96, is_async=True)
        assert pool.num_live == NUM_STEP_GRAPHS + 2  # and two of the vision tower
        assert_equal(logits_of(engine, sequences(make_sequence, prompts)), expected)
        assert 0 < runner_of(engine).num_replayed < engine.stats().num_steps_total
        pool.release()
        ranks.model.ranks.send_release()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fails_at", [0, 5, NUM_STEP_GRAPHS + 5])  # the last one after the measurement
def test_if_one_rank_cannot_capture_a_graph_no_rank_uses_graphs(
    start_ranks: StartRanks,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    prompts: dict[str, Prompt],
    expected: dict[str, Tensor],
    pool: FailingPool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rank: int,
    fails_at: int,
) -> None:
    """The steps that follow show that the ranks are still in sync."""
    if rank == 0:
        pool.fails_at = fails_at if fails_at < NUM_STEP_GRAPHS else fails_at + 2  # graphs of the vision tower
    else:
        monkeypatch.setenv(FAILS_AT, str(fails_at))
    ranks = start_ranks()

    engine = make_engine(over=ranks.model, runner=CapturingRunner, num_blocks=96)

    assert runner_of(engine).graphs is None and runner_of(engine).mixed_graphs is None
    assert pool.num_live == 0
    reason = "CUDA out of memory" if rank == 0 else "another rank could not capture a graph"
    assert [message for message in caplog.messages if message.endswith(reason)]
    assert_equal(logits_of(engine, sequences(make_sequence, prompts)), expected)
    assert not ranks.lost.is_set()


def test_if_the_vision_tower_cannot_be_captured_no_rank_uses_graphs(
    start_ranks: StartRanks,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    prompts: dict[str, Prompt],
    expected: dict[str, Tensor],
    pool: FailingPool,
) -> None:
    pool.fails_at = NUM_STEP_GRAPHS + 1
    engine = make_engine(over=start_ranks().model, runner=CapturingRunner, num_blocks=96)

    assert runner_of(engine).graphs is None and pool.num_live == 0
    assert_equal(logits_of(engine, sequences(make_sequence, prompts)), expected)


class NoWarmupPool(FailingPool):
    def warm_up(self, compute: Callable[[], Tensor]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_failed_first_run_ends_the_startup_because_the_other_rank_waits_in_it(
    start_ranks: StartRanks, make_engine: MakeEngine
) -> None:
    CapturingRunner.pool = NoWarmupPool()
    with pytest.raises(WarmupError, match="first run of a step across 2 ranks failed: CUDA out of memory"):
        make_engine(over=start_ranks().model, runner=CapturingRunner)
