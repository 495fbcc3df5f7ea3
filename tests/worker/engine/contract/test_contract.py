"""The contract of `EngineInterface`: the same tests for the native, the transformers and the echo engine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import Message
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine import Sequence, SequenceRejected
from llava_worker.engine.transformers.engine import TransformersEngine
from llava_worker.job_output import JobOutput
from llava_worker.job_preparation import JobPreparation
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings

from tests.worker.assignments import make_assignment, make_job
from tests.worker.byte_level_tokenizer import END_ID, VOCAB_SIZE, write_tokenizer_files
from tests.worker.engine.contract.engine_model import EngineModel, token_ids
from tests.worker.engine.transformers.families import write_family
from tests.worker.phi_family import write_phi_model

ENGINES = ("native", "native with Phi", "transformers", "transformers without padding", "echo")
MAX_SEQUENCES = 3
QUESTIONS = ("Hi?", "What is in the image, and why is it there?", "Describe it.", "Who?", "When was it made?")


def _write_qwen2_vl(folder: Path) -> tuple[str, ...]:
    return (str(write_family("qwen2_vl", folder / "model")),)


def _write_phi(folder: Path) -> tuple[str, ...]:
    """Write TinyLLaVA. It is quantized, so that its steps use all C++ kernels that support Phi."""
    write_tokenizer_files(folder, "CodeGenTokenizer")
    text = {"vocab_size": VOCAB_SIZE, "eos_token_id": END_ID, "max_position_embeddings": 1024}
    write_phi_model("TinyLLaVA-Phi-2-SigLIP-3.1B", folder, **text)
    return str(folder), "--precision", "int8"


_WRITERS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "native": lambda _: ("tiny",),
    "native with Phi": _write_phi,
    "echo": lambda _: ("echo",),
}


@pytest.fixture(scope="module", params=ENGINES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineModel:
    name: str = request.param
    model, *precision = _WRITERS.get(name, _write_qwen2_vl)(tmp_path_factory.mktemp("contract"))
    flags = ["--model", model, "--device", "cpu", "--max-num-sequences", str(MAX_SEQUENCES), *precision]
    opened = EngineModel(open_model(load_settings(flags)))
    if isinstance(opened.engine, TransformersEngine):
        opened.engine.is_grouped = name == "transformers"
    return opened


@pytest.fixture
def model(opened: EngineModel) -> Iterator[EngineModel]:
    yield opened
    assert opened.engine.num_sequences == 0
    assert opened.engine.stats().num_running == opened.engine.stats().num_waiting == 0


def test_a_sequence_has_one_final_output_after_max_new_tokens(model: EngineModel) -> None:
    outputs = model.run(model.sequence(max_tokens=5))["one"]

    assert len(token_ids(outputs)) == 5
    assert [output.is_final for output in outputs] == [False] * 4 + [True]
    assert (outputs[-1].finish, outputs[-1].error) == ("length", None)


def test_an_empty_engine_has_nothing_to_do(model: EngineModel) -> None:
    assert model.engine.num_sequences == 0
    assert model.engine.step() == []
    for _ in range(10_000):
        if not model.engine.idle():
            return
    raise AssertionError("the engine always has something to prepare")


def test_concurrent_outputs_equal_those_of_sequences_that_run_alone(model: EngineModel) -> None:
    def sequences() -> list[Sequence]:
        return [
            model.sequence(text, seq_id=str(index), color=50 * index if index % 2 else None)
            for index, text in enumerate(QUESTIONS)
        ]

    alone = {sequence.seq_id: model.tokens(sequence)[sequence.seq_id] for sequence in sequences()}

    assert model.tokens(*sequences()) == alone


def test_the_output_depends_on_the_image(model: EngineModel) -> None:
    outputs = [model.tokens(model.sequence(color=color, max_tokens=16))["one"] for color in (0, 120, 255)]
    assert outputs[0] != outputs[1] or outputs[1] != outputs[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_output_is_resumed_from_its_tokens(model: EngineModel, temperature: float) -> None:
    tokens = model.tokens(model.sequence(color=90, temperature=temperature, max_tokens=12))["one"]
    for start in (1, 6, 11):
        resumed = model.sequence(color=90, temperature=temperature, max_tokens=12, output_ids=tokens[:start])
        assert model.tokens(resumed)["one"] == tokens[start:]


def test_a_complete_output_is_resumed_without_a_token(model: EngineModel) -> None:
    tokens = model.tokens(model.sequence(max_tokens=4))["one"]
    (output,) = model.run(model.sequence(max_tokens=4, output_ids=tokens))["one"]
    assert (output.token_id, output.finish, output.error) == (None, "length", None)


def test_the_seed_determines_the_output(model: EngineModel) -> None:
    def tokens(seed: int) -> list[int]:
        return model.tokens(model.sequence(seed=seed, temperature=1.0, max_tokens=16))["one"]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_log_probabilities_belong_to_each_token(model: EngineModel) -> None:
    outputs = model.run(model.sequence(num_logprobs=3))["one"]
    for output in outputs:
        assert output.logprobs is not None
        assert output.logprobs.logprob <= 0
        assert len(output.logprobs.top) == 3
        assert output.logprobs.top[0][0] == output.token_id  # greedy
    without = model.run(model.sequence())["one"]
    assert all(output.logprobs is None for output in without)


def test_log_probabilities_of_the_prompt_are_part_of_the_first_output(model: EngineModel) -> None:
    sequence = model.sequence(num_prompt_logprobs=2, max_tokens=3)
    first, *others = model.run(sequence)["one"]
    assert len(first.prompt_logprobs) == len(sequence.prompt_ids) - 1
    assert all(len(each.top) == 2 and each.logprob <= 0 < each.rank for each in first.prompt_logprobs)
    assert not any(output.prompt_logprobs for output in others)


def test_a_stop_token_ends_the_output(model: EngineModel) -> None:
    tokens = model.tokens(model.sequence(max_tokens=12))["one"]
    stop = tokens[3]

    outputs = model.run(model.sequence(max_tokens=12, stop_token_ids=(stop,)))["one"]

    assert token_ids(outputs) == tokens[: tokens.index(stop) + 1]
    assert outputs[-1].finish == "stop"


def test_an_aborted_sequence_has_no_further_outputs(model: EngineModel) -> None:
    expected = model.tokens(model.sequence(seq_id="stays"))["stays"]
    model.engine.add(model.sequence(seq_id="leaves", max_tokens=50))
    model.engine.add(model.sequence(seq_id="stays"))
    outputs = model.engine.step()
    model.engine.abort("leaves")
    model.engine.abort("unknown")
    while model.engine.num_sequences:
        new = model.engine.step()
        assert {output.seq_id for output in new} <= {"stays"}
        outputs += new
    assert [output.token_id for output in outputs if output.seq_id == "stays"] == expected


def test_a_prompt_that_fills_the_context_is_rejected_and_others_continue(model: EngineModel) -> None:
    expected = model.tokens(model.sequence())["one"]
    model.engine.add(model.sequence())
    outputs = model.engine.step()
    with pytest.raises(SequenceRejected) as rejected:
        model.engine.add(model.too_long())
    assert rejected.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    while model.engine.num_sequences:
        outputs += model.engine.step()
    assert token_ids(outputs) == expected


def test_more_sequences_than_slots_wait_and_all_finish(model: EngineModel) -> None:
    sequences = [model.sequence(seq_id=str(index), max_tokens=6) for index in range(2 * MAX_SEQUENCES)]
    for sequence in sequences:
        model.engine.add(sequence)
    outputs = model.engine.step()
    stats = model.engine.stats()
    assert stats.num_running <= MAX_SEQUENCES
    assert stats.num_waiting + stats.num_running == 2 * MAX_SEQUENCES
    while model.engine.num_sequences:
        outputs += model.engine.step()
    assert sum(output.is_final for output in outputs) == 2 * MAX_SEQUENCES
    assert len(token_ids(outputs)) == 6 * 2 * MAX_SEQUENCES


def test_a_higher_priority_preempts_and_does_not_change_outputs(model: EngineModel) -> None:
    expected = model.tokens(model.sequence(max_tokens=20))["one"]
    outputs = []
    for index in range(MAX_SEQUENCES):
        model.engine.add(model.sequence(seq_id=f"low {index}", max_tokens=20))
    for _ in range(6):
        outputs += model.engine.step()
    urgent = dataclasses.replace(model.sequence(seq_id="high", max_tokens=2), priority=2)
    model.engine.add(urgent)
    while model.engine.num_sequences:
        outputs += model.engine.step()

    ended = [output.seq_id for output in outputs if output.is_final]
    assert ended[0] == "high"
    for index in range(MAX_SEQUENCES):
        assert token_ids([each for each in outputs if each.seq_id == f"low {index}"]) == expected


def test_statistics_count_the_generated_tokens(model: EngineModel) -> None:
    before = model.engine.stats()
    model.run(model.sequence(max_tokens=7), model.sequence(seq_id="two", max_tokens=5))
    after = model.engine.stats()
    assert after.num_generated_tokens_total - before.num_generated_tokens_total == 12
    assert after.num_steps_total > before.num_steps_total
    model.engine.add(model.sequence())
    assert model.engine.num_sequences == 1
    model.engine.abort("one")


def test_structured_output_matches_the_grammar_or_is_rejected_by_name(model: EngineModel) -> None:
    grammar = Grammar("regex", "(red|green), [0-9]{3}")
    if model.model.grammars is None:
        job = make_job(Message("user", ("Hi?",)), form="raw", sampling={"grammar": grammar})
        output = JobOutput(make_assignment(job), model.model.tokenizer)
        preparation = JobPreparation(model.model.prompts, None, context_length=model.engine.context_length)
        assert asyncio.run(preparation.prepare(output)) is None
        preparation.close()
        event = output.next_event()
        assert event is not None and event.final is not None and event.final.error is not None
        assert "does not support structured output" in event.final.error.message
        return
    outputs = model.run(model.sequence(grammar=grammar, max_tokens=40))["one"]
    assert model.text(outputs).strip() in {
        f"{color}, {number:03}" for color in ("red", "green") for number in range(1000)
    }
    assert outputs[-1].finish == "stop"
    tokens = token_ids(outputs)
    resumed = model.sequence(grammar=grammar, max_tokens=40, output_ids=tokens[:4])
    assert model.tokens(resumed)["one"] == tokens[4:]


def test_logits_processors_apply(model: EngineModel) -> None:
    if model.model.heartbeat.model == "echo":
        pytest.skip("the echo engine has no logits")
    tokens = model.tokens(model.sequence(max_tokens=6))["one"]
    biased = model.tokens(model.sequence(max_tokens=6, logit_bias=((tokens[0], -100.0),)))["one"]
    assert tokens[0] not in biased
    only = tuple(sorted({tokens[1], tokens[2]}))
    allowed = model.tokens(model.sequence(max_tokens=6, allowed_token_ids=only))["one"]
    assert set(allowed) <= set(only)


def test_a_sequence_whose_deadline_has_passed_ends_with_an_error(model: EngineModel) -> None:
    if model.model.heartbeat.model == "echo":
        pytest.skip("the echo engine has no deadlines")
    model.engine.add(dataclasses.replace(model.sequence(), deadline_s=0.0))
    (output,) = model.engine.step()
    assert output.error is not None
    assert output.error.code is ErrorCode.DEADLINE_EXCEEDED


def test_embeddings_are_returned_or_rejected_by_name(model: EngineModel) -> None:
    sequence = dataclasses.replace(model.sequence(), is_embedding=True)
    engine = model.model.heartbeat.engine
    assert engine is not None
    if engine.name == "transformers":
        with pytest.raises(SequenceRejected, match="Embeddings are not supported by the transformers engine"):
            model.engine.add(sequence)
        return
    (output,) = model.run(sequence)["one"]
    assert output.finish == "stop"
    assert len(output.vector) > 0
