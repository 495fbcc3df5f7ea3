from __future__ import annotations

import logging

import pytest
import torch
from llava_worker.model.quantization.precision import choose_precision

CPU = torch.device("cpu")


def test_auto_says_what_it_chose_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        precision = choose_precision("auto", CPU)

    assert precision.name in ("fp32", "bf16")
    assert f"precision auto: {precision.name}, because" in caplog.text


def test_a_named_precision_is_taken_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_precision("fp16", CPU).dtype == torch.float16
    assert not caplog.records


def test_an_unknown_precision_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"'fp9'; it must be one of auto, fp32, bf16, fp16"):
        choose_precision("fp9", CPU)
