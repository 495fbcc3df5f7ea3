"""The peak memory of a computation is measured exactly."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from llava_worker.model.peak_memory import PeakMemory

CPU = torch.device("cpu")
ROW_BYTES = 4 * 1000  # size of an fp32 tensor with 1,000 elements


@pytest.mark.parametrize("is_inference", [True, False])
def test_the_peak_counts_only_tensors_that_are_alive_at_the_same_time(is_inference: bool) -> None:
    weight = torch.ones(1000)
    with torch.inference_mode(is_inference), PeakMemory(CPU) as peak:
        first = torch.ones(1000)
        second = first + weight  # 2 rows
        del first
        third = torch.cat([second, second])  # 3 rows
        del second, third
        for _ in range(10):
            torch.ones(2000)  # each is freed before the next one is created

    assert peak.num_bytes == 3 * ROW_BYTES


def test_views_in_place_operations_and_earlier_tensors_are_not_counted() -> None:
    before = torch.ones(1000)
    with PeakMemory(CPU) as peak:
        before.view(10, 100).t()[3:5].add_(1)
        grown = torch.ones(10)
        grown.mul_(2).view(2, 5)

    assert peak.num_bytes == 40


def test_a_view_keeps_its_whole_tensor_alive() -> None:
    with PeakMemory(CPU) as peak:
        views = [torch.ones(1000)[:1] for _ in range(5)]
    assert peak.num_bytes == 5 * ROW_BYTES
    del views


def test_an_exception_is_propagated() -> None:
    with pytest.raises(ZeroDivisionError), PeakMemory(CPU):
        _ = 1 / 0


def test_memory_measurement_does_not_import_the_torch_compiler() -> None:
    """Many torch functions import the compiler, which takes two seconds."""
    program = (
        "import sys, torch\n"
        "from llava_worker.model.config.model_config import ImageConfig, ModelConfig\n"
        "from llava_worker.model.memory_estimate import weight_bytes\n"
        "from llava_worker.model.peak_memory import PeakMemory\n"
        "with PeakMemory(torch.device('cpu')):\n"
        "    torch.ones(3) + 1\n"
        "weight_bytes(ModelConfig(model_type='llava'), ImageConfig(), 'bf16')\n"
        "assert not {'sympy', 'torch._dynamo'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
