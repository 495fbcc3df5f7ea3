"""The native engine has the prompts and outputs of transformers, from image files to tokens."""

from __future__ import annotations

import pytest
from llava_worker.engine import Sequence

from tests.worker.engine.transformers.families import write_family
from tests.worker.engine.transformers.served_family import make_questions
from tests.worker.native_family import NativeFamily

QUESTIONS = make_questions()


@pytest.fixture(scope="module", params=["llava_onevision"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeFamily:
    name: str = request.param
    return NativeFamily(write_family(name, tmp_path_factory.mktemp(name) / name))


def test_prompts_equal_those_of_transformers(family: NativeFamily) -> None:
    for question in QUESTIONS:
        sequence = family.sequence(question)
        assert sequence.prompt_ids == family.inputs(question)["input_ids"][0].tolist()


def test_concurrent_greedy_outputs_equal_generate(family: NativeFamily) -> None:
    def sequences() -> list[Sequence]:
        return [family.sequence(question, seq_id=str(i)) for i, question in enumerate(QUESTIONS)]

    expected = {str(index): family.generated(question) for index, question in enumerate(QUESTIONS)}
    assert len({tuple(tokens) for tokens in expected.values()}) > 1

    assert family.run(*sequences()) == expected
    for sequence in sequences():
        assert family.run(sequence) == {sequence.seq_id: expected[sequence.seq_id]}
