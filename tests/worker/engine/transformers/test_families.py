"""Six vision-language families are served with the outputs of transformers' own ``generate``."""

from __future__ import annotations

import pytest

from tests.worker.engine.transformers.families import FAMILIES, write_family
from tests.worker.engine.transformers.served_family import ServedFamily, make_questions

# From the processor of PaliGemma, in code of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUESTIONS = make_questions()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedFamily:
    name: str = request.param
    return ServedFamily(write_family(name, tmp_path_factory.mktemp(name) / name))


def test_prompts_equal_those_of_transformers(family: ServedFamily) -> None:
    for question in QUESTIONS:
        sequence = family.sequence(question)
        assert sequence.prompt_ids == family.inputs(question)["input_ids"][0].tolist()


def test_concurrent_greedy_outputs_equal_generate(family: ServedFamily) -> None:
    expected = {str(index): family.generated(question) for index, question in enumerate(QUESTIONS)}
    assert len({tuple(tokens) for tokens in expected.values()}) > 1, (
        "the outputs do not depend on the prompts"
    )

    sequences = [family.sequence(question, seq_id=str(index)) for index, question in enumerate(QUESTIONS)]
    actual = family.run(*sequences)

    assert actual == expected
    assert family.model.heartbeat.engine is not None
    assert family.model.heartbeat.engine.batching == "padded"
    assert family.model.engine.stats().num_steps_total < sum(map(len, expected.values()))  # computed together


def test_an_output_is_resumed_from_its_tokens(family: ServedFamily) -> None:
    expected = family.run(*(family.sequence(q, seq_id=str(i)) for i, q in enumerate(QUESTIONS)))

    resumed = [
        family.sequence(question, seq_id=str(index), output_ids=expected[str(index)][: 5 + index])
        for index, question in enumerate(QUESTIONS)
    ]

    assert family.run(*resumed) == {key: tokens[5 + int(key) :] for key, tokens in expected.items()}
