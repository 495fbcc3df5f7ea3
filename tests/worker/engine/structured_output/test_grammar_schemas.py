"""Tests that outputs match fifty published schemas, including in batches, with images, and when resumed."""

from __future__ import annotations

import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine import Sequence
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import random_prompt
from tests.worker.engine.conftest import spans_of
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.structured_output.grammar_kit import (
    EOS_ID,
    MAX_TOKENS,
    SCHEMAS,
    Generation,
    Vocabulary,
    generate,
    is_valid,
    make_model,
    published_schemas,
)
from tests.worker.sampling_params import greedy

NUM_SEEDS = 2
NUM_FREE = 6


@pytest.fixture(scope="module")
def new_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    return partial(make_engine, make_model(tmp_path_factory.mktemp("wide"), torch.float64))


def make_engine(model: Llava, *, is_async: bool = False) -> Engine:
    """Make an engine for sixteen sequences.

    Its token budget is so small that long prompts are split into chunks.
    """
    text = model.config.text_config
    spec = KVCacheSpec.for_model(text, num_blocks=700, block_size=16, dtype=torch.float64)
    cache = KVCache(spec, torch.device("cpu"))
    return Engine(
        ModelRunner(model, cache, SdpaBackend(), EncoderCache(1 << 20)),
        eos_ids=frozenset({EOS_ID}),
        context_length=1000,
        max_num_sequences=16,
        max_batch_tokens=40,
        is_async=is_async,
    )


@pytest.fixture(scope="module")
def new_sequence(grammars: GrammarCache, vocabulary: Vocabulary) -> MakeSequence:
    """Return a function that makes a sequence with up to two images.

    The content of the sequence depends only on its name.
    """
    schemas = published_schemas()

    def make(name: str, output_ids: list[int] | None = None) -> Sequence:
        file, _, seed = name.partition("#")
        prompt = random_prompt(np.random.default_rng([int(seed), *name.encode()]), num_images=int(seed) % 3)
        is_free = file == "free"
        return Sequence(
            seq_id=name,
            prompt_ids=list(prompt.token_ids),
            images=spans_of(prompt),
            pixels=[tile.tobytes() for tile in prompt.pixels],
            max_new_tokens=60 if is_free else MAX_TOKENS,
            sampling=greedy(temperature=1.0, seed=int(seed), logit_bias=vocabulary.closing_bias()),
            output_ids=output_ids or [],
            grammar=None if is_free else grammars.compile(Grammar("json_schema", json.dumps(schemas[file]))),
        )

    return make


def names() -> list[str]:
    held = [f"{file}#{seed}" for file in published_schemas() for seed in range(NUM_SEEDS)]
    random.Random(0).shuffle(held)
    step = len(held) // NUM_FREE
    for index in range(NUM_FREE):
        held.insert(index * step, f"free#{index}")
    return held


@pytest.fixture(scope="module")
def uninterrupted(new_engine: MakeEngine, new_sequence: MakeSequence) -> dict[str, Generation]:
    return generate(new_engine(), [new_sequence(name) for name in names()])


def test_there_are_fifty_schemas_with_source_and_license() -> None:
    index = json.loads((SCHEMAS / "index.json").read_text())["schemas"]
    assert len(published_schemas()) == 50
    assert {entry["file"] for entry in index} == {path.name for path in SCHEMAS.glob("*.json")} - {
        "index.json"
    }
    assert {entry["licence"] for entry in index} == {"Apache-2.0", "BSD-3-Clause", "MIT"}
    assert all(entry["source"].startswith("https://") for entry in index)
    assert all((SCHEMAS / entry["file"]).stat().st_size < 8192 for entry in index)


def test_every_output_matches_its_schema(
    uninterrupted: dict[str, Generation], vocabulary: Vocabulary
) -> None:
    schemas = published_schemas()
    held = {name: generated for name, generated in uninterrupted.items() if not name.startswith("free")}
    assert len(held) == 50 * NUM_SEEDS
    for name, generated in held.items():
        text = vocabulary.text(generated.token_ids)
        assert generated.finish == "stop", (name, generated.error, text[:200])
        assert is_valid(text, schemas[name.partition("#")[0]]), (name, text)
    texts = {vocabulary.text(generated.token_ids) for generated in held.values()}
    assert len(texts) > 50  # outputs vary, and not all of them are as short as possible


def test_outputs_without_a_grammar_are_not_affected_by_those_with_one(
    uninterrupted: dict[str, Generation], new_engine: MakeEngine, new_sequence: MakeSequence
) -> None:
    free = [name for name in uninterrupted if name.startswith("free")]
    alone = generate(new_engine(is_async=True), [new_sequence(name) for name in free])
    assert len(free) == NUM_FREE
    for name in free:
        assert alone[name].token_ids == uninterrupted[name].token_ids


def test_another_worker_resumes_each_output_exactly(
    uninterrupted: dict[str, Generation], new_engine: MakeEngine, new_sequence: MakeSequence
) -> None:
    rng = random.Random(1)
    cut = {}
    for name, generated in uninterrupted.items():
        if not name.startswith("free") and len(generated.token_ids) > 2:
            cut[name] = generated.token_ids[: rng.randrange(1, len(generated.token_ids))]
    continued = generate(new_engine(is_async=True), [new_sequence(name, cut[name]) for name in sorted(cut)])
    assert len(cut) > 80
    for name in cut:
        assert continued[name].token_ids == uninterrupted[name].token_ids, name
        assert continued[name].finish == "stop"
