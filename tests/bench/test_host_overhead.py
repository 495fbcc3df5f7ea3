"""The host's work per engine step stays small, in function calls, which do not depend on the machine."""

from __future__ import annotations

import cProfile
import json
import pstats
import random

from bench.engine.host_overhead import PROMPT_TOKENS, add_streams, make_engine, measure
from bench.record import RESULTS

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


def test_the_recorded_time_of_a_step_is_below_the_minimum_of_an_h200() -> None:
    """The minimum is that of LLaVA-1.5-7B in 16 bits, by arithmetic (docs/deploy/gpus.md)."""
    record = json.loads((RESULTS / "host-overhead.json").read_text())["results"]

    for num_streams, device_ms in {"1": 2.8, "128": 12.6, "256": 22.0}.items():
        assert record[num_streams]["cpu_ms_per_step"] < device_ms / 2
    assert record["128"]["cpu_ms_per_step"] <= 1.5
