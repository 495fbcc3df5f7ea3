"""Tests that random workloads never lose sequences or blocks, and that requests do not affect each other."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.engine import Engine
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision

from tests.worker.checkpoints import write_checkpoint
from tests.worker.engine.core.hash_model_runner import HashModelRunner, expected_output
from tests.worker.engine.core.workloads import (
    MAX_OUTPUT,
    Arrival,
    Request,
    Traffic,
    UnreliableDrafter,
    make_arrivals,
    make_requests,
    make_shape,
    truncate,
)
from tests.worker.engine.factories import MakeEngine
from tests.worker.engine.seeds import for_each_seed


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_workload_without_tensors_changes_no_token_and_loses_no_block(
    pytestconfig: pytest.Config, is_async: bool
) -> None:
    def run_workload(seed: int) -> None:
        rng = random.Random(seed)
        requests = make_requests(rng, rng.randint(2, 8))
        arrivals = make_arrivals(rng, requests, rng.randint(4, 16), can_break=True)
        shape = make_shape(rng, requests)
        outputs = {
            arrival.seq_id: truncate(
                expected_output(arrival.sequence(()), MAX_OUTPUT), arrival.max_new_tokens
            )
            for arrival in arrivals
        }
        traffic = Traffic(arrivals, lambda arrival: outputs[arrival.seq_id])
        encoder_cache = EncoderCache(rng.choice([0, 8, 1000]))
        breaks_at = {arrival.seq_id: arrival.breaks_at for arrival in arrivals}
        runner: Any = HashModelRunner(shape["num_blocks"], shape["block_size"], encoder_cache, breaks_at)
        engine = Engine(
            runner,
            eos_ids=frozenset({2}),
            context_length=shape["num_blocks"] * shape["block_size"],
            max_num_sequences=shape["max_num_sequences"],
            max_batch_tokens=shape["max_batch_tokens"],
            encoder_cost=rng.choice([0.0, 0.3, 1.0, 5.0]),
            is_sharing_prefixes=rng.random() < 0.9,
            drafter=UnreliableDrafter(rng, outputs) if rng.random() < 0.3 else None,
            is_async=is_async,
            now=traffic.now,
        )
        traffic.run(engine, max_batch_tokens=shape["max_batch_tokens"])

    for_each_seed(pytestconfig, run_workload, num_seeds=1000)


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Llava:
    """A model that has one layer with a hidden size of 16, and a vision tower with 2x2 patches."""
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
def alone(micro: Llava, make_engine: MakeEngine) -> dict[Request, list[int]]:
    """Requests and their outputs. Each output is computed in a separate engine without prefix caching."""
    outputs = {}
    for request in make_requests(random.Random(0), 24):
        engine = make_engine(
            over=micro, num_blocks=100, max_batch_tokens=100, is_sharing_prefixes=False, eos_ids=frozenset()
        )
        engine.add(Arrival(0, "alone", request, "", 0, MAX_OUTPUT, 0, None, None).sequence(()))
        token_ids = [output.token_id for _ in range(MAX_OUTPUT) for output in engine.step()]
        outputs[request] = [token_id for token_id in token_ids if token_id is not None]
    return outputs


def test_a_workload_with_a_real_model_changes_no_token_and_loses_no_block(
    micro: Llava,
    alone: dict[Request, list[int]],
    make_engine: MakeEngine,
    pytestconfig: pytest.Config,
) -> None:
    def run_workload(seed: int) -> None:
        rng = random.Random(seed)
        requests = rng.sample(list(alone), rng.randint(2, 6))
        arrivals = make_arrivals(rng, requests, rng.randint(4, 12))
        shape = make_shape(rng, requests)
        expected = {
            arrival.seq_id: truncate(alone[arrival.request], arrival.max_new_tokens) for arrival in arrivals
        }
        traffic = Traffic(arrivals, lambda arrival: expected[arrival.seq_id])
        engine = make_engine(
            over=micro,
            encoder_cache_bytes=rng.choice([0, 300, 1 << 20]),
            drafter=UnreliableDrafter(rng, expected) if rng.random() < 0.3 else None,
            is_async=seed % 2 == 1,
            now=traffic.now,
            **shape,
        )
        traffic.run(engine, max_batch_tokens=shape["max_batch_tokens"])

    for_each_seed(pytestconfig, run_workload, num_seeds=120)
