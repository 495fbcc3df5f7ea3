"""SamplingParams out of bounds is refused with the field, its value and the limit, and hurts nobody else."""

from __future__ import annotations

import pytest
from llava_worker.engine import SequenceRejected

from tests.worker.checkpoints import Prompt

PROMPT = Prompt([1, 5, 6, 7])
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"temperature": INF}, "temperature is inf"),
        ({"top_p": NAN}, "top_p is nan"),
        ({"min_p": NAN}, "min_p is nan"),
        ({"min_p": 1.01}, "min_p is 1.01; it must be from 0 to 1"),
        ({"top_k": -1}, "top_k is -1; it must be 0 or a larger number"),
        ({"presence_penalty": NAN}, "presence_penalty is nan"),
        ({"presence_penalty": 2.5}, "from -2 to 2"),
        ({"frequency_penalty": 1e308}, "frequency_penalty is 1e+308"),
        ({"repetition_penalty": 0.0}, "greater than 0"),
        ({"repetition_penalty": -0.0}, "greater than 0"),
        ({"repetition_penalty": INF}, "repetition_penalty is inf"),
        ({"logit_bias": ((5, NAN),)}, "logit_bias of token 5 is nan"),
        ({"logit_bias": ((5, 101.0),)}, "from -100 to 100"),
        ({"logit_bias": ((2**63, 1.0),)}, "names token 9223372036854775808"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias names token -1; the vocabulary has 0 to 127"),
        ({"logit_bias": tuple((0, 1.0) for _ in range(301))}, "301 entries; the limit is 300"),
        ({"stop_token_ids": (128,)}, "stop_token_ids names token 128"),
        ({"stop_token_ids": tuple(range(17))}, "17 entries; the limit is 16"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"num_logprobs": 21}, "num_logprobs is 21; it must be from 0 to 20"),
    ],
    ids=str,
)
def test_sampling_out_of_bounds_is_refused_and_the_neighbour_answers(
    make_engine, make_sequence, run, sampling: dict, words: str
) -> None:
    engine = make_engine()
    with pytest.raises(SequenceRejected) as refused:
        engine.add(make_sequence(PROMPT, seq_id="bad", **sampling))

    assert words in refused.value.error.message
    assert refused.value.error.code == "invalid_request"
    assert refused.value.error.param == next(iter(sampling))
    assert run(engine, [make_sequence(PROMPT)])["one"]
