"""Tests of the hardware limits with which results are compared."""

from __future__ import annotations

import pytest
import torch
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.quantization.precision import Role, choose_precision

from bench.serving.ceilings import Ceilings
from bench.serving.served_model import ServedModel
from bench.serving.targets import all_targets
from bench.shape import LLAVA_1_5_7B, LLAVA_1_5_SMALL, Shape

_CEILINGS = Ceilings(read_bytes_per_s=1.0, bf16_per_s=2.0, int8_per_s=4.0, num_threads=1)
_SCALE_BITS = {8: 0.0, 5: 16 / 64, 4: 16 / 64}  # one scale per output with 8 bits, which is negligible


@pytest.mark.parametrize("shape", [LLAVA_1_5_SMALL, LLAVA_1_5_7B], ids=["1.3b", "7b"])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_limit_of_a_precision_is_that_of_the_weights_that_the_worker_reads(
    shape: Shape, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = ServedModel(
        folder=tmp_path_factory.getbasetemp(), shape=shape, num_at_once=1, tokens_per_request=1
    )
    assert all_targets(model)[f"llava-serve-{name}"].bits == pytest.approx(_mean_bits(shape, name), abs=0.01)


def test_quantized_weights_with_scales_are_compared_with_the_int8_rate() -> None:
    assert _CEILINGS.per_s(8.5) == _CEILINGS.int8_per_s
    assert _CEILINGS.per_s(16) == _CEILINGS.bf16_per_s


def _mean_bits(shape: Shape, name: str) -> float:
    """Return the mean bits per weight of the decoder's layers and of the LM head, including their scales."""
    precision = choose_precision(name, torch.device("cpu"))
    size, wide = shape.hidden, shape.intermediate
    layer: list[tuple[Role, int, int]] = [("decoder", size, size)] * 4
    layer += [("decoder", size, wide), ("decoder", size, wide), ("down_proj", wide, size)]
    head: tuple[Role, int, int] = ("lm_head", size, shape.vocabulary)
    total = 0.0
    for role, inputs, outputs in [*layer * shape.layers, head]:
        bits = precision.weight_bits(LinearShape(inputs, {"": outputs}), role)
        assert bits is not None
        total += inputs * outputs * (bits + _SCALE_BITS[bits])
    return total / shape.decoder_parameters
