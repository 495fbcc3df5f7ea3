"""Whatever comes, in whatever order: nobody is lost, no block is, and every answer is the one given alone.

The number in a test's name is the seed of its workload, so the name plays it again.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.engine import Engine
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision

from tests.worker.checkpoints import write_checkpoint
from tests.worker.engine.core.hash_model import HashRunner, answer_of
from tests.worker.engine.core.workloads import (
    LONGEST_ANSWER,
    Arrival,
    HalfRightDrafter,
    Question,
    Traffic,
    cut,
    make_arrivals,
    make_questions,
    make_shape,
)

NUM_HASHED, NUM_COMPUTED = 1000, 120


@pytest.mark.parametrize("is_async", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("seed", range(NUM_HASHED))
def test_a_workload_without_tensors_keeps_every_token_and_every_block(seed: int, is_async: bool) -> None:
    rng = random.Random(seed)
    questions = make_questions(rng, rng.randint(2, 8))
    arrivals = make_arrivals(rng, questions, rng.randint(4, 16), can_break=True)
    shape = make_shape(rng, questions)
    answers = {
        arrival.seq_id: cut(answer_of(arrival.sequence(()), LONGEST_ANSWER), arrival.max_new_tokens)
        for arrival in arrivals
    }
    traffic = Traffic(arrivals, lambda arrival: answers[arrival.seq_id])
    encoder_cache = EncoderCache(rng.choice([0, 8, 1000]))
    breaks_at = {arrival.seq_id: arrival.breaks_at for arrival in arrivals}
    runner = HashRunner(shape["num_blocks"], shape["block_size"], encoder_cache, breaks_at)
    engine = Engine(
        runner,  # type: ignore[arg-type]
        eos_ids=frozenset({2}),
        context_length=shape["num_blocks"] * shape["block_size"],
        max_num_sequences=shape["max_num_sequences"],
        max_batch_tokens=shape["max_batch_tokens"],
        is_sharing_prefixes=rng.random() < 0.9,
        drafter=HalfRightDrafter(rng, answers) if rng.random() < 0.3 else None,
        is_async=is_async,
        now=traffic.now,
    )

    traffic.run(engine, max_batch_tokens=shape["max_batch_tokens"])


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Llava:
    """One layer of 16, and a tower of two by two patches."""
    folder: Path = tmp_path_factory.mktemp("micro")
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    write_checkpoint(folder, text=text, vision=vision)
    device = torch.device("cpu")
    precision = choose_precision("fp32", device)
    model = Llava(read_config(folder), read_image_config(folder), precision=precision, device=device)
    load_weights(model, folder)
    return model


@pytest.fixture(scope="module")
def alone(micro, make_engine) -> tuple[list[Question], dict[Question, list[int]]]:
    """Questions, and the answer to each in an engine of its own that shares nothing."""
    questions = make_questions(random.Random(0), 24)
    answers = {}
    for question in questions:
        engine = make_engine(
            over=micro, num_blocks=100, max_batch_tokens=100, is_sharing_prefixes=False, eos_ids=frozenset()
        )
        arrival = Arrival(0, "alone", question, "", 0, LONGEST_ANSWER, 0, None, None)
        engine.add(arrival.sequence(()))
        answers[question] = [out.token_id for _ in range(LONGEST_ANSWER) for out in engine.step()]
    return questions, answers


@pytest.mark.parametrize("seed", range(NUM_COMPUTED))
def test_a_workload_of_a_real_model_keeps_every_token_and_every_block(
    micro, alone, make_engine, seed: int
) -> None:
    rng = random.Random(seed)
    questions, answers = alone
    some = rng.sample(questions, rng.randint(2, 6))
    arrivals = make_arrivals(rng, some, rng.randint(4, 12))
    shape = make_shape(rng, some)
    expected = {
        arrival.seq_id: cut(answers[arrival.question], arrival.max_new_tokens) for arrival in arrivals
    }
    traffic = Traffic(arrivals, lambda arrival: expected[arrival.seq_id])
    engine = make_engine(
        over=micro,
        vision_cache_bytes=rng.choice([0, 300, 1 << 20]),
        drafter=HalfRightDrafter(rng, expected) if rng.random() < 0.3 else None,
        is_async=seed % 2 == 1,
        now=traffic.now,
        **shape,
    )

    traffic.run(engine, max_batch_tokens=shape["max_batch_tokens"])
