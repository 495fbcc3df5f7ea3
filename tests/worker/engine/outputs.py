"""Runs an engine and collects its outputs."""

from __future__ import annotations

from llava_worker.engine import Sequence, StepOutput
from llava_worker.engine.engine import Engine


def collect_outputs(engine: Engine, *sequences: Sequence) -> dict[str, list[StepOutput]]:
    """Run the engine until all sequences have finished and return their outputs.

    Check the blocks after every step.
    """
    outputs: dict[str, list[StepOutput]] = {}
    for sequence in sequences:
        outputs[sequence.seq_id] = []
        engine.add(sequence)
    while engine.num_sequences:
        for output in engine.step():
            outputs[output.seq_id].append(output)
        engine.check()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    return outputs


def num_computed_tokens(engine: Engine) -> int:
    """Return the number of computed tokens, including drafts and recomputation after a preemption."""
    stats = engine.stats()
    return stats.num_prefill_tokens_total + stats.num_decode_tokens_total
