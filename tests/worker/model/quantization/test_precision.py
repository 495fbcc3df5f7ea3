"""Precisions are selected by name. For "auto", the precision depends on the device."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch
from llava_worker.model.layers.linear import Linear, LinearShape
from llava_worker.model.quantization.precision import Role, choose_precision, precisions_on

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda:0"), torch.device("meta")


def test_auto_logs_the_selected_precision_and_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        precision = choose_precision("auto", CPU)

    assert precision.name in ("fp32", "bf16")
    assert f"precision: {precision.name}, because" in caplog.text


def test_an_explicit_precision_is_used_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_precision("fp16", CPU).dtype == torch.float16
    assert not caplog.records


def test_an_unknown_precision_is_rejected_with_the_supported_ones() -> None:
    with pytest.raises(ValueError, match=r"'fp9' is not supported. Use one of auto, fp32, bf16, fp16"):
        choose_precision("fp9", CPU)


def test_a_gpu_precision_is_rejected_on_other_devices_with_the_available_ones() -> None:
    for name, minimum in (
        ("w4a16", "8.0 or higher (Ampere)"),
        ("w8a8", "8.0 or higher (Ampere)"),
        ("fp8", "8.9 or higher (Ada and Hopper)"),
    ):
        with pytest.raises(ValueError) as caught:
            choose_precision(name, CPU)
        assert str(caught.value) == (
            f"Precision {name} requires a GPU with compute capability {minimum}; the device is cpu. Use one "
            "of auto, fp32, bf16, fp16, int8, int4."
        )
    with pytest.raises(
        ValueError, match=r"int8 is not available on xpu. Use one of auto, fp32, bf16, fp16\.$"
    ):
        choose_precision("int8", torch.device("xpu"))


def test_a_missing_package_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    for name in ("int8", "int4"):
        with pytest.raises(
            ValueError,
            match=rf"Precision {name} on a GPU requires bitsandbytes. Run pip install 'bitsandbytes>=0.49'",
        ):
            choose_precision(name, CUDA)
    with pytest.raises(
        ValueError, match="Precision w4a16 requires Triton. Run pip install triton, or use fp16"
    ):
        choose_precision("w4a16", CUDA)
    assert precisions_on(CUDA) == ("fp32", "bf16", "fp16", "w4a16", "w8a8", "fp8")


def test_only_llm_int8_does_not_support_cuda_graphs() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    names = ("fp16", "bf16", "int4", "w4a16", "w8a8", "fp8", "int8")
    assert [choose_precision(name, CUDA).is_capturable for name in names] == [True] * 6 + [False]
    assert choose_precision("int8", CPU).is_capturable


def test_int4_on_a_cpu_has_5_bits_in_small_layers_and_down_projections() -> None:
    precision = choose_precision("int4", CPU)
    hidden, inner = 4096, 11008  # sizes of LLaVA-1.5-7B
    decoder: list[tuple[LinearShape, Role]] = [
        (LinearShape.plain(hidden, 3 * hidden), "decoder"),
        (LinearShape.plain(hidden, hidden), "decoder"),
        (LinearShape.plain(hidden, 2 * inner), "decoder"),
        (LinearShape.plain(inner, hidden), "down_proj"),
    ]

    bits = [precision.weight_bits(shape, role) for shape, role in decoder]
    num_bytes = sum(bytes_of(precision.linear(shape, META, role)) for shape, role in decoder)

    assert bits == [4, 4, 4, 5]
    assert 4.4 < 8 * num_bytes / sum(shape.in_features * shape.out_features for shape, _ in decoder) < 4.5
    assert precision.weight_bits(LinearShape.plain(2047, 64), "decoder") == 5
    assert precision.weight_bits(LinearShape.plain(64, 64), "lm_head") == 8
    assert choose_precision("bf16", CPU).weight_bits(LinearShape.plain(64, 64), "decoder") is None


def bytes_of(layer: Linear) -> int:
    return sum(parameter.nbytes for parameter in layer.parameters())
