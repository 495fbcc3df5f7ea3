"""The host's work per engine step stays small, in function calls, which do not depend on the machine."""

from __future__ import annotations

import cProfile
import pstats
import random

from bench.engine.host_overhead import PROMPT_TOKENS, add_streams, make_engine, measure

NUM_STEPS = 20


def calls_per_step(num_streams: int) -> float:
    engine = make_engine(num_streams, PROMPT_TOKENS + 200)
    add_streams(engine, num_streams, random.Random(0))
    for _ in range(NUM_STEPS):
        engine.step()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(NUM_STEPS):
        engine.step()
    profile.disable()
    return pstats.Stats(profile).total_calls / NUM_STEPS  # type: ignore[attr-defined, no-any-return]


def test_a_step_needs_few_function_calls_per_stream() -> None:
    alone, many = calls_per_step(1), calls_per_step(65)

    assert alone < 500
    assert (many - alone) / 64 < 100


def test_a_measured_step_decodes_one_token_for_each_stream() -> None:
    assert measure(3, 5) > 0
