"""The benchmark of GPUs, rehearsed on a CPU: everything is measured, and what cannot be says why."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from llava_worker.model.linear import Linear
from llava_worker.model.precision import choose_precision

from bench.gpu import CARD_LIMITS, measure_case, measure_transformers
from bench.random_engine import make_model
from bench.record import ROOT
from bench.shape import MINI

CPU = torch.device("cpu")
CARD = dict.fromkeys(CARD_LIMITS, 1e12)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_case_has_all_that_is_promised(precision: str) -> None:
    told = measure_case(MINI, precision, CPU, CARD, [1, 2])

    assert told.keys() >= {"weight_bytes", "ready_s", "ttft_s", "streams", "pictures_per_s", "shares"}
    assert told["streams"].keys() == {"1", "2"} and told["is_recorded"] is False
    assert all(share > 0 for share in told["shares"].values())
    assert len(told["streams"]["2"]["ttft_s"]) == 2


def test_transformers_is_measured_beside_it_in_the_same_terms() -> None:
    told = measure_transformers(MINI, CPU, [1, 2])

    assert told.keys() == {"1", "2"}
    for each in told.values():
        assert each.keys() == {"ttft_s", "decode_step_s", "output_tokens_per_s", "wall_s"}
        assert min(each["ttft_s"], each["output_tokens_per_s"], each["wall_s"]) > 0


@torch.inference_mode()
def test_random_weights_are_all_there_and_activations_stay_in_range() -> None:
    model = make_model(MINI, choose_precision("fp32", CPU), CPU)

    for layer in model.modules():
        if isinstance(layer, Linear):
            out = layer(torch.randn(50, layer.shape.in_features))
            assert 0.5 < float(out.std()) < 2
    tiles = torch.randint(0, 256, (2, MINI.image_side, MINI.image_side, 3), dtype=torch.uint8)
    assert model.encode(tiles).isfinite().all()


@pytest.mark.e2e
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_how_to_rehearse() -> None:
    command = [sys.executable, "-m", "bench.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs an NVIDIA GPU, and torch sees none; --quick rehearses it on the CPU" in done.stderr
