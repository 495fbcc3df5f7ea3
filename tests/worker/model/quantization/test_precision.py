"""Precisions are chosen by name, or "auto" by the device."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch
from llava_worker.model.quantization.precision import choose_precision, precisions_on
from llava_worker.model.quantization.w8a8 import W8A8_FORMATS

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_auto_logs_its_choice_and_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        precision = choose_precision("auto", CPU)

    assert precision.name in ("fp32", "bf16")
    assert f"precision auto: {precision.name}, because" in caplog.text


def test_a_named_precision_is_used_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_precision("fp16", CPU).dtype == torch.float16
    assert not caplog.records


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'fp9'; it must be one of auto, fp32, bf16, fp16"):
        choose_precision("fp9", CPU)


def test_a_gpus_precision_is_refused_elsewhere_with_the_supported_ones() -> None:
    for name in ("w4a16", *W8A8_FORMATS):
        with pytest.raises(
            ValueError, match=f"{name} cannot be had on cpu: use one of auto, fp32, bf16, fp16, int8"
        ):
            choose_precision(name, CPU)
    with pytest.raises(ValueError, match="int8 cannot be had on xpu: use one of auto, fp32, bf16, fp16$"):
        choose_precision("int8", torch.device("xpu"))


def test_a_missing_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    for name in ("int8", "int4"):
        with pytest.raises(
            ValueError,
            match=rf"precision {name} on a GPU needs bitsandbytes: pip install 'bitsandbytes>=0.49'",
        ):
            choose_precision(name, CUDA)
    with pytest.raises(ValueError, match="precision w4a16 needs Triton: pip install triton, or use fp16"):
        choose_precision("w4a16", CUDA)
    assert precisions_on(CUDA) == ("fp32", "bf16", "fp16", "w4a16", "w8a8", "fp8")


def test_only_llm_int8_is_not_capturable() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    names = ("fp16", "bf16", "int4", "w4a16", "w8a8", "fp8", "int8")
    assert [choose_precision(name, CUDA).is_capturable for name in names] == [True] * 6 + [False]
    assert choose_precision("int8", CPU).is_capturable
