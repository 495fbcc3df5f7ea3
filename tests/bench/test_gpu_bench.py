"""Tests for the GPU benchmark, run with a mini model on a CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from llava_worker.model.layers.linear import Linear
from llava_worker.model.quantization.precision import choose_precision

from bench.engine.random_engine import make_model
from bench.gpu.__main__ import measurements_of, parse_args
from bench.gpu.llava_serve import CARD_LIMITS, measure_case, text_prompts
from bench.gpu.time_budget import Measurement, run_within
from bench.gpu.transformers import measure_continuous, measure_generate
from bench.record import ROOT
from bench.shape import MINI

CPU = torch.device("cpu")
CARD = dict.fromkeys(CARD_LIMITS, 1e12)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_case_has_all_results(precision: str) -> None:
    results = measure_case(MINI, precision, CPU, CARD, [1, 2])

    assert results.keys() >= {"weight_bytes", "ready_s", "ttft_s", "streams", "pictures_per_s", "shares"}
    assert results["streams"].keys() == {"1", "2"} and results["is_recorded"] is False
    assert all(share > 0 for share in results["shares"].values())
    assert len(results["streams"]["2"]["ttft_s"]) == 2
    assert ("text" in results) == (precision == "fp32")  # for the comparison with transformers


def test_transformers_generate_is_measured_with_the_same_metrics() -> None:
    results = measure_generate(MINI, CPU, [1, 2], 8)

    assert results.keys() == {"1", "2"}
    for case in results.values():
        assert case.keys() == {"ttft_s", "decode_step_s", "output_tokens_per_s", "wall_s"}
        assert min(case["ttft_s"], case["output_tokens_per_s"], case["wall_s"]) > 0


def test_transformers_continuous_batching_has_the_same_metrics_and_prompt_lengths() -> None:
    results = measure_continuous(MINI, CPU, text_prompts(MINI, [1, 3]), 8)

    expected = measure_case(MINI, "fp32", CPU, CARD, [1, 3])["text"]
    assert results.keys() == expected.keys() == {"1", "3"}
    for num, case in results.items():
        assert case.keys() == expected[num].keys()
        assert case["prompt_tokens"] == expected[num]["prompt_tokens"]
        assert len(case["ttft_s"]) == len(expected[num]["ttft_s"]) == int(num)
        assert 0 < case["ttft_s"][0] < case["wall_s"]


class Clock:
    """A fake clock that is advanced by the measurements."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def measurement(self, name: str, seconds: float, weight: float = 1.0) -> Measurement:
        def measure() -> dict[str, object]:
            self.now += seconds
            return {"took": seconds}

        return Measurement(name, measure, weight)


def test_measurements_that_fit_are_all_run() -> None:
    clock = Clock()
    done, dropped = run_within(
        [clock.measurement("a", 60), clock.measurement("b", 39)], deadline=1121, clock=clock
    )
    assert done == {"a": {"took": 60}, "b": {"took": 39}} and dropped == {}


def test_measurements_that_do_not_fit_are_dropped_and_listed() -> None:
    """The third measurement does not fit in the remaining time.

    The last one would fit, but is skipped as well.
    """
    clock = Clock()
    rows = [clock.measurement(name, seconds) for name, seconds in {"a": 60, "b": 40, "c": 10, "d": 1}.items()]
    done, dropped = run_within(rows, deadline=1159, clock=clock)
    assert list(done) == ["a", "b"]
    assert dropped == dict.fromkeys("cd", "only 59 s were left for c, which may take 60 s")


def test_the_expected_duration_depends_on_the_weight() -> None:
    clock = Clock()
    rows = [
        clock.measurement("7b", 50),
        clock.measurement("13b", 90, weight=2.0),
        clock.measurement("7b-int8", 50),
    ]
    assert list(run_within(rows, deadline=1195, clock=clock)[0]) == ["7b", "13b", "7b-int8"]
    clock = Clock()
    rows = [
        clock.measurement("7b", 50),
        clock.measurement("13b", 90, weight=2.0),
        clock.measurement("7b-int8", 50),
    ]
    assert list(run_within(rows, deadline=1149, clock=clock)[0]) == ["7b"]


def test_without_any_time_nothing_is_started() -> None:
    clock = Clock()
    done, dropped = run_within([clock.measurement("a", 60)], deadline=1000, clock=clock)
    assert done == {} and list(dropped) == ["a"]


def test_transformers_is_measured_before_the_other_precisions() -> None:
    names = [case.name for case in measurements_of(parse_args([]), CPU, CARD)]
    assert names[:3] == ["7b-fp16", "transformers", "transformers-continuous"]
    assert names[3:] == ["7b-w4a16", "7b-fp8", "13b-fp16", "7b-w8a8", "7b-int8", "7b-int4"]


@torch.inference_mode()
def test_all_random_weights_are_set_and_activations_are_in_range() -> None:
    model = make_model(MINI, choose_precision("fp32", CPU), CPU)

    for layer in model.modules():
        if isinstance(layer, Linear):
            out = layer(torch.randn(50, layer.shape.in_features))
            assert 0.5 < float(out.std()) < 2
    tiles = torch.randint(0, 256, (2, MINI.image_side, MINI.image_side, 3), dtype=torch.uint8)
    assert model.encode(tiles).isfinite().all()


@pytest.mark.e2e
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_error_message_suggests_quick() -> None:
    command = [sys.executable, "-m", "bench.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "requires an NVIDIA GPU, but torch found none. Use --quick for a smoke test on the CPU."
        in done.stderr
    )
