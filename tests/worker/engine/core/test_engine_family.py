"""Tests of the engine with other LLaVA models, which use image grids, sliding windows or other towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine import SequenceRejected
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.config.image_grid import ImageLayout

from tests.worker.checkpoints import (
    LLAVA_INTERLEAVE,
    LLAVA_NEXT_MISTRAL,
    LLAVA_ONEVISION,
    MEAN,
    STD,
    VIP_LLAVA,
    Reference,
    random_prompt,
    reference_output,
    write_checkpoint,
)
from tests.worker.engine.factories import MakeSequence, Run


@pytest.fixture(scope="module")
def next_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    folder = tmp_path_factory.mktemp("next")
    return folder, write_checkpoint(folder, **LLAVA_NEXT_MISTRAL)


@pytest.mark.parametrize(
    "options",
    [LLAVA_NEXT_MISTRAL, LLAVA_INTERLEAVE, LLAVA_ONEVISION, VIP_LLAVA],
    ids=["1.6", "interleave", "onevision", "vipllava"],
)
def test_outputs_equal_those_of_transformers_with_and_without_cache_hits(
    tmp_path: Path, make_sequence: MakeSequence, run: Run, options: dict[str, Any]
) -> None:
    reference = write_checkpoint(tmp_path, **options)
    colors = {"image_mean": MEAN.flatten().tolist(), "image_std": STD.flatten().tolist()}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(colors))
    engine, info = build_engine(
        EngineConfig(
            tmp_path,
            precision="fp32",
            device="cpu",
            block_size=8,
            max_batch_tokens=48,
            kv_cache_bytes=8 << 20,
        )
    )
    layout = layout_of(engine)
    rng = np.random.default_rng(4)
    prompts = [random_prompt(rng, num_images=count, layout=layout) for count in (1, 0, 3, 2)]
    expected = [reference_output(reference, prompt, 12) for prompt in prompts]

    first = run(engine, [make_sequence(prompt, seq_id=str(i)) for i, prompt in enumerate(prompts)])
    again = run(engine, [make_sequence(prompt, seq_id=str(i)) for i, prompt in enumerate(prompts)])

    assert [first[str(i)] for i in range(4)] == [again[str(i)] for i in range(4)] == expected
    assert info.layout == layout
    assert engine.stats().num_cached_tokens_total > 0
    assert engine.stats().num_encoded_images_total == 6


def test_equal_tiles_with_different_image_sizes_are_different_images(
    next_model: tuple[Path, Reference], make_sequence: MakeSequence, run: Run
) -> None:
    folder, reference = next_model
    engine, _ = build_engine(EngineConfig(folder, precision="fp32", device="cpu", block_size=8))
    layout = layout_of(engine)
    prompt = random_prompt(np.random.default_rng(5), num_images=1, layout=layout)
    sizes = [(56, 28), (56, 20)]
    assert len({layout.plan(*size).num_tiles for size in sizes}) == 1
    are_equal = []
    for size in sizes:
        plan = layout.plan(*size)
        start, length = prompt.image_starts[0], prompt.lengths[0]
        token_ids = prompt.token_ids[:start] + [127] * plan.num_tokens + prompt.token_ids[start + length :]
        tile = prompt.pixels[0][:1]
        changed = type(prompt)(
            token_ids, [start], [tile.repeat(plan.num_tiles, axis=0)], [plan.num_tokens], [size]
        )
        are_equal.append(
            run(engine, [make_sequence(changed)])["one"] == reference_output(reference, changed, 12)
        )

    assert are_equal == [True, True]


def test_a_low_detail_image_has_only_the_base_view_and_a_newline(
    next_model: tuple[Path, Reference], make_sequence: MakeSequence, run: Run
) -> None:
    engine, _ = build_engine(EngineConfig(next_model[0], precision="fp32", device="cpu", block_size=8))
    layout = layout_of(engine)
    prompt = random_prompt(np.random.default_rng(5), num_images=1, layout=layout)
    start, length = prompt.image_starts[0], prompt.lengths[0]
    num_low = layout.tokens_per_tile + 1  # a newline
    assert num_low < length

    token_ids = prompt.token_ids[:start] + [127] * num_low + prompt.token_ids[start + length :]
    low = type(prompt)(token_ids, [start], [prompt.pixels[0][:1]], [num_low], [(0, 0)])
    assert len(run(engine, [make_sequence(low)])["one"]) > 0

    model = engine._runner.model
    features = model.encode(torch.from_numpy(prompt.pixels[0].copy()))
    whole = model.assemble(features, layout.plan(*prompt.sizes[0]))
    base = model.assemble(features[:1], layout.plan(0, 0))
    assert torch.equal(base[:-1], whole[: num_low - 1])
    assert torch.equal(base[-1], model.image_newline)


def test_an_image_span_that_does_not_match_its_size_is_rejected(
    next_model: tuple[Path, Reference], make_sequence: MakeSequence
) -> None:
    engine, _ = build_engine(EngineConfig(next_model[0], precision="fp32", device="cpu"))
    prompt = random_prompt(np.random.default_rng(6), num_images=1, layout=layout_of(engine))
    width, height = prompt.sizes[0]
    prompt.sizes = [(height, width * 7)]

    with pytest.raises(SequenceRejected, match="tiles of 28x28 RGB pixels"):
        engine.add(make_sequence(prompt))

    prompt.sizes = [(0, 5)]
    with pytest.raises(SequenceRejected, match="The image size is 0x5 pixels"):
        engine.add(make_sequence(prompt))


def layout_of(engine: Engine) -> ImageLayout:
    return engine._runner.model.config.image_layout()
