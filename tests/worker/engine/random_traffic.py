"""Random traffic for an engine, with random arrivals, repeated prompts, two tenants and aborts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llava_worker.engine import Sequence
from llava_worker.engine.engine import Engine

__all__ = ["run_random_traffic"]


def run_random_traffic(
    engine: Engine,
    rng: np.random.Generator,
    make: Callable[[int, str, str], Sequence],
    alone: list[list[int]],
    *,
    num_sequences: int,
) -> None:
    """Run random traffic.

    Assert that each output is the same as when its prompt runs alone and that no block is lost.
    ``make(prompt, seq_id, cache_scope)`` returns a sequence for the prompt with this number. ``alone``
    contains the output of each prompt when it runs alone. Sequence IDs start with the number of the prompt
    and a dot.
    """
    expected: dict[str, list[int]] = {}
    outputs: dict[str, list[int | None]] = {}
    num_left = num_sequences
    while num_left or engine.num_sequences:
        for _ in range(min(num_left, int(rng.integers(0, 4)))):
            prompt = int(rng.integers(len(alone)))
            seq_id, scope = f"{prompt}.{num_left}", "ab"[int(rng.integers(2))]
            engine.add(make(prompt, seq_id, scope))
            expected[seq_id], outputs[seq_id] = alone[prompt], []
            num_left -= 1
        if expected and rng.random() < 0.1:
            aborted = str(rng.choice(list(expected)))
            engine.abort(aborted)
            expected.pop(aborted)
        for output in engine.step():
            outputs[output.seq_id].append(output.token_id)
        engine.check()
    assert {seq_id: outputs[seq_id] for seq_id in expected} == expected
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
