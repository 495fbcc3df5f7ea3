"""Tests that the error for an invalid sampling parameter contains the field, the value and the limit."""

from __future__ import annotations

from typing import Any

import pytest
from llava_wire.messages.event import ErrorCode
from llava_worker.engine import SequenceRejected

from tests.worker.checkpoints import Prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run

PROMPT = Prompt([1, 5, 6, 7])
NAN, INF = float("nan"), float("inf")

OUT_OF_BOUNDS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": INF}, "temperature is inf"),
    ({"temperature": -1.0}, "temperature is -1"),
    ({"temperature": NAN}, "temperature is nan"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    ({"top_p": NAN}, "top_p is nan"),
    ({"min_p": NAN}, "min_p is nan"),
    ({"min_p": 1.01}, "min_p is 1.01; it must be between 0 and 1"),
    ({"top_k": -1}, "top_k is -1; it must be at least 0"),
    ({"presence_penalty": NAN}, "presence_penalty is nan"),
    ({"presence_penalty": 2.5}, "between -2 and 2"),
    ({"frequency_penalty": 1e308}, "frequency_penalty is 1e+308"),
    ({"repetition_penalty": 0.0}, "greater than 0"),
    ({"repetition_penalty": -0.0}, "greater than 0"),
    ({"repetition_penalty": INF}, "repetition_penalty is inf"),
    ({"logit_bias": ((5, NAN),)}, "logit_bias for token 5 is nan"),
    ({"logit_bias": ((5, 101.0),)}, "between -100 and 100"),
    ({"logit_bias": ((2**63, 1.0),)}, "contains token ID 9223372036854775808"),
    ({"logit_bias": ((-1, 1.0),)}, "logit_bias contains token ID -1; it must be between 0 and 127"),
    ({"logit_bias": tuple((0, 1.0) for _ in range(301))}, "301 entries; the limit is 300"),
    ({"stop_token_ids": (128,)}, "stop_token_ids contains token ID 128"),
    ({"stop_token_ids": tuple(range(17))}, "17 entries; the limit is 16"),
    ({"min_tokens": -1}, "min_tokens is -1"),
    ({"num_logprobs": 21}, "num_logprobs is 21; it must be between 0 and 20"),
]


def test_sampling_out_of_bounds_is_rejected_and_other_sequences_are_not_affected(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run
) -> None:
    engine = make_engine()
    for sampling, message in OUT_OF_BOUNDS:
        with pytest.raises(SequenceRejected) as rejected:
            engine.add(make_sequence(PROMPT, seq_id="bad", **sampling))

        error = rejected.value.error
        assert message in error.message
        assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, next(iter(sampling)))
    assert run(engine, [make_sequence(PROMPT)])["one"]
