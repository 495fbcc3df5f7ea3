"""On a CPU, the memory of the KV cache grows with the number of tokens that it has stored."""

from __future__ import annotations

import numpy as np
from llava_worker.engine import Sequence
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig

from tests.worker.engine.tiny_model import TINY
from tests.worker.model.resident_memory import resident_bytes

NUM_CONTEXTS = 16  # in the whole cache


def make_engine() -> Engine:
    return build_engine(EngineConfig(TINY, device="cpu", max_num_sequences=NUM_CONTEXTS))[0]


def num_resident_contexts(engine: Engine) -> float:
    """Return how many full contexts the resident part of the KV cache can store."""
    cache = engine._runner.cache
    return NUM_CONTEXTS * sum(map(resident_bytes, cache._tensors())) / cache.spec.num_bytes


def idle(engine: Engine) -> None:
    while engine.idle():
        pass


def complete(engine: Engine, seed: int) -> int:
    """Complete a prompt that nearly fills the context. Return the number of tokens found in the cache."""
    prompt_ids = np.random.default_rng(seed).integers(3, 300, engine.context_length - 8).tolist()
    engine.add(Sequence(seq_id="a", prompt_ids=[1, *prompt_ids], max_new_tokens=2))
    outputs = []
    while engine.num_sequences:
        outputs += engine.step()
    assert outputs[-1].is_final and outputs[-1].error is None
    return outputs[-1].num_cached_tokens


def test_an_idle_engine_has_memory_for_one_prompt_with_an_image_more_than_it_has_used() -> None:
    engine = make_engine()
    num_spare = (engine._runner.model.config.tokens_per_tile + 192) / engine.context_length
    assert num_resident_contexts(engine) < num_spare  # not allocated while the engine starts
    idle(engine)
    assert num_spare <= num_resident_contexts(engine) < 2 * num_spare
    complete(engine, 0)
    idle(engine)
    assert 1 + num_spare <= num_resident_contexts(engine) < 1 + 2 * num_spare


def test_memory_grows_with_new_prompts_up_to_the_limit_and_is_reused_for_known_prompts() -> None:
    engine = make_engine()
    for seed in range(3):
        complete(engine, seed)
    idle(engine)
    assert 3 <= num_resident_contexts(engine) < 8
    for seed in range(3):
        assert complete(engine, seed) >= engine.context_length - 16
    idle(engine)
    assert num_resident_contexts(engine) < 8
    for seed in range(3, NUM_CONTEXTS + 2):
        complete(engine, seed)
    idle(engine)
    assert num_resident_contexts(engine) == NUM_CONTEXTS
    engine.check()
