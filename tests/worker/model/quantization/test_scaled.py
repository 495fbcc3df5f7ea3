"""Weights and inputs in 8 bits as GPUs multiply them: torch's own products, which run on a CPU too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.memory_budget import weight_bytes
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.model.quantization.w8a8 import (
    W8A8_FORMATS,
    W8A8Format,
    W8A8Linear,
    require_capability,
    self_test,
)
from torch import Tensor

from tests.worker.checkpoints import write_checkpoint
from tests.worker.model.quantization.pieces import assert_same_in_pieces

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
SIZE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 4}
WORST = {"w8a8": 0.02, "fp8": 0.06}  # relative, of rows of normal numbers


@pytest.fixture(params=W8A8_FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def layer_of(name: str, weight: Tensor, *, piece: int = 1 << 20, shape: LinearShape | None = None) -> Linear:
    shape = shape or LinearShape.plain(weight.shape[1], weight.shape[0])
    layer = W8A8Linear(shape, W8A8_FORMATS[name], dtype=torch.float32, device=CPU)
    for start in range(0, len(weight), piece):
        layer.load_rows(start, weight[start : start + piece])
    return layer


@pytest.mark.parametrize("num_rows", [1, 16, 17, 33])
def test_products_are_those_of_the_definition(name: str, num_rows: int) -> None:
    torch.manual_seed(0)
    kind = W8A8_FORMATS[name]
    w, w_scales = kind.quantize(torch.randn(48, 1600))
    x, x_scales = kind.quantize(torch.randn(num_rows, 1600) * 9)

    got = kind.matmul(x, x_scales, w, w_scales)

    wanted = kind.reference(x, x_scales, w, w_scales)
    tolerance = 1e-5 if got.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(got.float(), wanted, rtol=tolerance, atol=tolerance * float(wanted.std()))


def test_a_layer_is_near_the_exact_one_and_large_rows_cost_the_others_nothing(name: str) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 512), torch.randn(20, 512)
    x[7] *= 1000
    weight[5] *= 100
    size = x.norm(dim=1, keepdim=True) * weight.norm(dim=1)
    exact = x @ weight.t() / size

    error = layer_of(name, weight)(x) / size - exact

    assert 0 < (error.norm(dim=1) / exact.norm(dim=1)).max() < WORST[name]


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_a_layer_is_the_same_however_its_rows_came(name: str, piece: int) -> None:
    torch.manual_seed(0)
    shape = LinearShape(128, {"q_proj": 80, "k_proj": 48}, has_bias=True)
    weight, bias, x = torch.randn(128, 128), torch.randn(128), torch.randn(2, 3, 128)

    def make(num_rows: int) -> Linear:
        return layer_of(name, weight, piece=num_rows, shape=shape)

    assert_same_in_pieces(make, weight, bias, x, piece=piece)


def test_rows_of_zeros_are_zeros_and_rows_that_are_no_numbers_spoil_no_other(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    x[0], x[1, 3], x[2, 3] = 0, torch.nan, torch.inf

    y = layer_of(name, torch.randn(32, 64))(x)

    assert (y[0] == 0).all() and y[3].isfinite().all()
    assert not y[1:3].isfinite().any()


def test_only_the_decoders_layers_are_in_8_bits_and_what_they_take_is_known_before(
    tmp_path: Path, name: str
) -> None:
    write_checkpoint(tmp_path, text=SIZE)
    config, image = read_config(tmp_path), read_image_config(tmp_path)
    precision = choose_precision(name, CUDA)
    model = Llava(config, image, precision=precision, device=CPU)
    load_weights(model, tmp_path)

    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, Linear)}

    assert {type(layer) for path, layer in layers.items() if "language_model" in path} == {W8A8Linear}
    assert {type(layer) for path, layer in layers.items() if "language_model" not in path} == {DenseLinear}
    assert precision.is_capturable
    assert weight_bytes(config, image, name, CUDA) == sum(each.nbytes for each in model.parameters())
    out = layers["language_model.layers.0.mlp.down_proj"](torch.randn(3, 192, dtype=precision.dtype))
    assert out.dtype == precision.dtype and out.isfinite().all() and out.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "capability", "told"),
    [
        ("fp8", (8, 0), "8.9 or later (Ada and Hopper), and an A100 has 8.0: use w8a8, int8, w4a16 or fp16"),
        ("w8a8", (7, 5), "8.0 or later (Ampere), and an A100 has 7.5: use int8, w4a16 or fp16"),
    ],
)
def test_an_older_card_is_told_what_it_lacks_and_what_serves(name: str, capability, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        require_capability(name, capability, "an A100")
    assert str(refused.value) == f"precision {name} needs a GPU of compute capability {told}"


def test_a_card_that_has_what_is_needed_is_not_refused(name: str) -> None:
    require_capability(name, W8A8_FORMATS[name].capability, "it")
    require_capability(name, (12, 0), "it")


def test_fp8_on_ada_wants_a_torch_whose_products_do_not_hang_there() -> None:
    with pytest.raises(ValueError) as refused:
        require_capability("fp8", (8, 9), "an L4", torch_version="2.11.1+cu130")
    assert str(refused.value) == (
        "precision fp8 on an L4 needs torch 2.12 or later, and this is 2.11.1+cu130, whose products may hang "
        "there: install a later one, or use w8a8 or fp16"
    )
    require_capability("fp8", (8, 9), "an L4", torch_version="2.12.0+cu130")
    require_capability("fp8", (9, 0), "an H100", torch_version="2.11.1+cu130")
    require_capability("w8a8", (8, 9), "an L4", torch_version="2.11.1+cu130")


def test_they_are_refused_on_a_cpu_with_what_is_served_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be had on cpu: use one of auto, fp32, bf16, fp16"):
        choose_precision(name, CPU)


def test_sizes_that_the_products_do_not_take_are_refused_with_those_that_they_do() -> None:
    with pytest.raises(ValueError, match="100 inputs and 64 outputs, and products in 8 bits take multiples"):
        layer_of("fp8", torch.zeros(64, 100))
    layer_of("w8a8", torch.zeros(64, 104))


class Forgetful(type(W8A8_FORMATS["w8a8"])):
    """Right but for the last rows, where there are many."""

    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        y = super().matmul(x, x_scales, w, w_scales)
        y[256:] = 0
        return y


class Refusing(type(W8A8_FORMATS["w8a8"])):
    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED\nat this line")


def test_products_that_are_wrong_are_found_before_they_serve(name: str) -> None:
    kinds: list[W8A8Format] = [W8A8_FORMATS[name], Forgetful(), Refusing()]
    right, wrong, refused = (self_test(kind, CPU) for kind in kinds)
    assert right is None
    assert wrong is not None and wrong.startswith("a product is ")
    assert refused == "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_SUPPORTED"
