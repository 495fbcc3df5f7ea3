"""Tests that the vision tower computes the same features with CUDA graphs as without them.

These tests run without a GPU. Instead of a graph, they replay a function call with the same tensors, buckets
and padding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from llava_worker.model.gpu.cuda_graphs import EagerPool
from llava_worker.model.gpu.tower_graphs import TowerGraphs
from llava_worker.model.llava import Llava
from torch import Tensor

from tests.worker.checkpoints import random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run

MAX_TILES = 5


class CountingPool(EagerPool):
    """Records the number of tiles that each replay computes."""

    def __init__(self) -> None:
        self.replayed: list[int] = []

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        out, again = super().capture(compute)

        def replay() -> None:
            self.replayed.append(len(out))
            again()

        return out, replay


@pytest.fixture
def pool() -> CountingPool:
    return CountingPool()


@pytest.fixture
def graphs(model: Llava, pool: CountingPool) -> TowerGraphs:
    return TowerGraphs(model, pool, max_tiles=MAX_TILES)


def draw(num: int, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 28, 28, 3), dtype=torch.uint8, generator=noise)


@torch.inference_mode()
@pytest.mark.parametrize(("num", "bucket"), [(1, [1]), (2, [2]), (3, [4]), (5, [5]), (6, [])])
def test_the_smallest_sufficient_bucket_gives_the_same_features(
    model: Llava, graphs: TowerGraphs, pool: CountingPool, num: int, bucket: list[int]
) -> None:
    graphs.encode(draw(5, seed=7))  # the padding rows now contain tiles of another image
    pool.replayed.clear()

    features = graphs.encode(draw(num))

    assert pool.replayed == bucket  # no graph is replayed if there are more tiles than captured
    torch.testing.assert_close(features, model.encode(draw(num)), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_features_are_not_overwritten_by_the_next_image(model: Llava, graphs: TowerGraphs) -> None:
    first = graphs.encode(draw(2, seed=1))
    kept = first.clone()
    graphs.encode(draw(2, seed=2))
    assert torch.equal(first, kept)


def test_an_engine_with_vision_tower_graphs_gives_the_same_outputs(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    graphs: TowerGraphs,
    pool: CountingPool,
) -> None:
    rng = np.random.default_rng(31)
    prompts = {name: random_prompt(rng, num_images=num) for name, num in zip("abc", (1, 3, 0), strict=True)}

    def outputs(**more: object) -> dict[str, list[int]]:
        engine = make_engine(num_blocks=128, max_batch_tokens=64)
        for name, value in more.items():
            setattr(engine._runner, name, value)
        return run(engine, [make_sequence(prompt, seq_id=name) for name, prompt in prompts.items()])

    captured = outputs(encode=graphs.encode)

    assert pool.replayed == [4]
    assert captured == outputs()
