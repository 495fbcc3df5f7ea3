"""Tests that compare sampling with a simple reference: for single rows, in a batch, and in the engine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine.sampling.logits_processor import LogitsProcessorState
from llava_worker.engine.sampling.sampler import SamplingRow, sample
from numpy.typing import NDArray

from tests.worker.checkpoints import (
    IMAGE_TOKEN,
    Prompt,
    Reference,
    random_prompt,
    reference_logits,
    reference_output,
)
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.sampling_params import greedy

CHI_SQUARE_LIMIT = 40.5  # the 1 - 1e-6 quantile of the chi-square distribution with 7 degrees of freedom
NUM_DRAWS = 10_000
LOGITS = np.array([1.0, -0.5, 2.0, 0.3, -1.2, 0.9, 1.7, -3.0], dtype=np.float32)
PROMPT, OUTPUT = [0, 2, 2, 4], [2, 5, 5, 1]
EOS = 6

CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top_k": {"top_k": 3},
    "top_k 1": {"top_k": 1},
    "top_k beyond the vocabulary": {"top_k": 2**40},
    "min_p": {"min_p": 0.3},
    "min_p 1": {"min_p": 1.0},
    "all three": {"min_p": 0.05, "top_k": 5, "top_p": 0.8},
    "top_p after top_k": {"top_k": 3, "top_p": 0.7},
    "repetition": {"repetition_penalty": 1.7},
    "encouraged repetition": {"repetition_penalty": 0.4},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.8},
    "negative frequency": {"frequency_penalty": -2.0},
    "all penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "bias": {"logit_bias": ((3, 2.5), (2, -100.0))},
    "bias before penalty": {"logit_bias": ((5, -2.0),), "repetition_penalty": 1.5},
    "end token before min_tokens": {"min_tokens": 5},
    "end token after min_tokens": {"min_tokens": 4},
    "stop tokens before min_tokens": {"min_tokens": 9, "stop_token_ids": (0, 2)},
    "min_tokens with ignore_eos": {"min_tokens": 9, "ignore_eos": True},
    "everything": {
        "min_p": 0.01,
        "top_k": 6,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.3,
        "logit_bias": ((7, 4.0),),
        "min_tokens": 9,
        "stop_token_ids": (0,),
    },
}


def reference_probabilities(
    s: SamplingParams, prompt: list[int], output_ids: list[int]
) -> NDArray[np.float64]:
    """Compute the probabilities token by token, in the order that the documentation specifies."""
    logits = LOGITS.astype(np.float64)
    for token_id, bias in s.logit_bias:
        logits[token_id] += bias
    if len(output_ids) < s.min_tokens:
        for token_id in end_ids_of(s):
            logits[token_id] = -np.inf
    counts = Counter(output_ids)
    for token_id in set(prompt + output_ids):
        factor = s.repetition_penalty
        logits[token_id] = logits[token_id] / factor if logits[token_id] > 0 else logits[token_id] * factor
    for token_id, count in counts.items():
        logits[token_id] -= s.frequency_penalty * count + s.presence_penalty
    scaled = np.exp((logits - logits.max()) / s.temperature)
    p = scaled / scaled.sum()
    p[p < s.min_p * p.max()] = 0
    if s.top_k:
        p[np.argsort(-p)[s.top_k :]] = 0
    p /= p.sum()
    mass = 0.0
    for token_id in np.argsort(-p):
        if mass >= s.top_p:
            p[token_id] = 0
        mass += p[token_id]
    return np.asarray(p / p.sum())


def state_of(sampling: SamplingParams) -> LogitsProcessorState | None:
    return LogitsProcessorState.create(sampling, PROMPT, end_ids_of(sampling))


def end_ids_of(sampling: SamplingParams) -> frozenset[int]:
    return frozenset({*sampling.stop_token_ids, *([] if sampling.ignore_eos else [EOS])})


def draws_of(sampling: SamplingParams, positions: range, output_ids: list[int] = OUTPUT) -> list[SamplingRow]:
    """Return a sampling row for each position, which determines its random number.

    All follow ``output_ids``.
    """
    state = state_of(sampling)
    if state is not None:
        state.update(output_ids)
    return [SamplingRow(sampling, position, state) for position in positions]


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_reference(name: str) -> None:
    sampling = greedy(**({"temperature": 0.9} | CASES[name]))
    expected = reference_probabilities(sampling, PROMPT, OUTPUT) * NUM_DRAWS
    state = state_of(sampling)
    if state is not None:
        state.update(OUTPUT)
    draws = [
        SamplingRow(greedy(**({"temperature": 0.9, "seed": seed} | CASES[name])), len(OUTPUT), state)
        for seed in range(NUM_DRAWS)
    ]

    token_ids = sample(torch.from_numpy(LOGITS).expand(NUM_DRAWS, -1).clone(), draws)

    counts = np.bincount(token_ids.numpy(), minlength=len(LOGITS))
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum() < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_with_different_parameters_are_sampled_independently(temperature: float) -> None:
    samplings = [greedy(temperature=temperature, seed=3, **case) for case in CASES.values()]
    logits = torch.from_numpy(LOGITS).expand(len(samplings), -1)
    draws = [draws_of(sampling, range(4, 5))[0] for sampling in samplings]

    together = sample(logits.clone(), draws).tolist()

    assert together == [int(sample(logits[:1].clone(), [draw])) for draw in draws]


@pytest.mark.parametrize("name", CASES)
def test_incremental_token_counts_equal_counts_of_the_whole_output(name: str) -> None:
    sampling = greedy(**CASES[name])
    output_ids = np.random.default_rng(0).integers(0, 500, 300).tolist()
    grown, whole = state_of(sampling), state_of(sampling)
    if grown is None or whole is None:
        assert not {"repetition", "presence", "frequency", "bias"} & set(name.split())
        return
    for length in range(len(output_ids) + 1):
        grown.update(output_ids[:length])
    whole.update(output_ids)

    seen = dict(zip(grown.ids.tolist(), grown.counts.tolist(), strict=True))
    assert seen == dict(zip(whole.ids.tolist(), whole.counts.tolist(), strict=True))
    if grown.has_penalties:
        assert {token_id: count for token_id, count in seen.items() if count} == Counter(output_ids)


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-320},
        {"temperature": 1e308},
        {"temperature": -0.0},
        {"repetition_penalty": 1e-308, "temperature": 1.0},
        {"logit_bias": tuple((token_id, -100.0) for token_id in range(8)), "temperature": 1e-30},
        {"min_p": 1.0, "top_p": 0.0, "top_k": 1, "temperature": 1.0},
    ],
    ids=str,
)
def test_extreme_parameters_cause_no_nan(extreme: dict[str, Any]) -> None:
    logits = torch.from_numpy(LOGITS)[None].clone()
    token_id = int(sample(logits, draws_of(greedy(**extreme), range(4, 5))))

    assert 0 <= token_id < len(LOGITS)
    assert not logits.isnan().any()


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(11)
    return [random_prompt(rng, num_images=index % 2) for index in range(4)]


def test_repetition_penalty_equals_that_of_transformers(
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
    reference: Reference,
    prompts: list[Prompt],
) -> None:
    sequences = [
        make_sequence(prompt, seq_id=str(i), repetition_penalty=1.4) for i, prompt in enumerate(prompts)
    ]
    outputs_by_id = run(make_engine(num_blocks=128), sequences)

    expected = [reference_output(reference, prompt, 12, repetition_penalty=1.4) for prompt in prompts]
    assert [outputs_by_id[str(i)] for i in range(len(prompts))] == expected
    assert expected != [reference_output(reference, prompt, 12) for prompt in prompts]


PROCESSED: dict[str, Any] = {
    "temperature": 0.9,
    "seed": 5,
    "top_k": 40,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.7,
    "frequency_penalty": 0.9,
    "logit_bias": ((9, 1.5), (IMAGE_TOKEN, -100.0)),  # image tokens must not be sampled
    "min_tokens": 7,
    "stop_token_ids": (12, 13),
}


@pytest.mark.parametrize("cut", [1, 6, 11])
def test_a_resumed_sequence_counts_its_earlier_tokens(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt], cut: int
) -> None:
    whole = run(make_engine(eos_ids=frozenset()), [make_sequence(prompts[0], **PROCESSED)])["one"]
    continued = make_sequence(prompts[0], output_ids=whole[:cut], **PROCESSED)

    assert run(make_engine(eos_ids=frozenset()), [continued])["one"] == whole


def test_preemption_does_not_count_a_token_twice(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> None:
    def outputs(**options: Any) -> tuple[dict[str, list[int]], int]:
        engine = make_engine(eos_ids=frozenset(), **options)
        sequences = [
            make_sequence(prompt, seq_id=str(i), max_new_tokens=20, **PROCESSED | {"stop_token_ids": ()})
            for i, prompt in enumerate(prompts)
        ]
        return run(engine, sequences), engine.stats().num_preemptions_total

    roomy, none = outputs(num_blocks=256)
    tight, some = outputs(num_blocks=18)

    assert tight == roomy
    assert (none, some > 0) == (0, True)


def test_the_sampler_drops_the_state_of_finished_sequences(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> None:
    engine = make_engine()
    run(engine, [make_sequence(prompts[0], **PROCESSED)])

    assert len(engine._runner._sampler._processors) == 0


def test_a_stop_token_ends_the_output_unless_min_tokens_forbids_it(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> None:
    tokens = run(make_engine(eos_ids=frozenset()), [make_sequence(prompts[0])])["one"]
    stop = tokens[4]

    stopped = run(make_engine(eos_ids=frozenset()), [make_sequence(prompts[0], stop_token_ids=(stop,))])
    later = run(
        make_engine(eos_ids=frozenset()), [make_sequence(prompts[0], stop_token_ids=(stop,), min_tokens=9)]
    )

    assert stopped["one"] == tokens[: tokens.index(stop) + 1]
    assert len(later["one"]) >= 10 and stop not in later["one"][:9]


def test_min_tokens_delays_the_end_of_sequence_token(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> None:
    tokens = run(make_engine(eos_ids=frozenset()), [make_sequence(prompts[0])])["one"]
    ends = frozenset(tokens[:3])

    output_ids = run(make_engine(eos_ids=ends), [make_sequence(prompts[0], min_tokens=12)])["one"]

    assert len(output_ids) == 12 and not ends & set(output_ids)


def test_equal_seeds_give_equal_outputs_and_different_seeds_different_ones(
    make_engine: MakeEngine, make_sequence: MakeSequence, run: Run, prompts: list[Prompt]
) -> None:
    def four(first: int) -> list[list[int]]:
        sequences = [
            make_sequence(prompts[1], seq_id=str(i), seed=first + i, temperature=1.0) for i in range(4)
        ]
        outputs_by_id = run(make_engine(num_blocks=128, eos_ids=frozenset()), sequences)
        return [outputs_by_id[str(i)] for i in range(4)]

    assert four(1) == four(1)
    assert len({tuple(output_ids) for output_ids in four(1)}) == 4


def test_logprobs_are_the_log_softmax_of_transformers_logits(
    make_engine: MakeEngine, make_sequence: MakeSequence, reference: Reference, prompts: list[Prompt]
) -> None:
    engine = make_engine(num_blocks=128, eos_ids=frozenset())
    for i, prompt in enumerate(prompts):  # logits processors and other rows must not affect log-probabilities
        engine.add(make_sequence(prompt, seq_id=str(i), num_logprobs=i * 5 or None, **PROCESSED))
    outputs = [output for _ in range(40) for output in engine.step()]

    assert all(output.logprobs is None for output in outputs if output.seq_id == "0")
    for i, prompt in enumerate(prompts[1:], start=1):
        own = [output for output in outputs if output.seq_id == str(i)]
        output_ids = [output.token_id for output in own if output.token_id is not None]
        num_prompt = len(prompt.token_ids)
        prompt.token_ids = prompt.token_ids + output_ids
        expected = reference_logits(reference, prompt).log_softmax(-1)[num_prompt - 1 : -1]
        prompt.token_ids = prompt.token_ids[:num_prompt]
        for output, row in zip(own, expected, strict=True):
            assert output.logprobs is not None and output.token_id is not None
            assert output.logprobs.logprob == pytest.approx(float(row[output.token_id]), abs=1e-4)
            best = row.topk(i * 5)
            assert [token_id for token_id, _ in output.logprobs.top] == best.indices.tolist()
            values = [value for _, value in output.logprobs.top]
            assert values == pytest.approx(best.values.tolist(), abs=1e-4)
