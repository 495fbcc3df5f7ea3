"""State per sequence is created once and disappears with the sequence."""

from __future__ import annotations

import gc

from llava_worker.engine import Sequence
from llava_worker.engine.core.sequence_states import SequenceStates


def make_sequence() -> Sequence:
    return Sequence(seq_id="same", prompt_ids=[1], max_new_tokens=1)


def test_the_state_of_a_sequence_is_created_once() -> None:
    states = SequenceStates(lambda sequence: [sequence.seq_id])
    one, other = make_sequence(), make_sequence()
    assert one not in states

    states[one].append("changed")

    assert states[one] == ["same", "changed"] and one in states
    assert states[other] == ["same"]
    assert len(states) == 2


def test_a_deleted_sequence_has_no_state_even_if_its_address_is_reused() -> None:
    states: SequenceStates[list[int]] = SequenceStates(lambda _: [])
    for _ in range(100):
        sequence = make_sequence()
        assert states[sequence] == []
        states[sequence].append(1)
        del sequence
    gc.collect()
    assert len(states) == 0
