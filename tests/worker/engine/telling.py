"""What an engine tells of its sequences, output by output."""

from __future__ import annotations

from llava_worker.engine import Sequence, StepOutput
from llava_worker.engine.engine import Engine


def told_by(engine: Engine, *sequences: Sequence) -> dict[str, list[StepOutput]]:
    """Everything, until all have ended. Every step leaves the blocks in order, and the last one all free."""
    told: dict[str, list[StepOutput]] = {}
    for sequence in sequences:
        told[sequence.seq_id] = []
        engine.add(sequence)
    while engine.num_sequences:
        for output in engine.step():
            told[output.seq_id].append(output)
        engine.check()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    return told
