"""Weights in 8 and 4 bits as GPUs have them: by bitsandbytes, which computes on a CPU too, and in Triton.

Without a GPU the kernel in Triton runs in Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.w4a16 import W4A16Kernels
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.memory_budget import weight_bytes
from llava_worker.model.quantization.bitsandbytes import BnbInt8Linear, BnbNF4Linear
from llava_worker.model.quantization.precision import choose_precision, precisions_on
from llava_worker.model.quantization.quantized_linear import QuantizedLinear
from torch import Tensor

from tests.worker.checkpoints import write_checkpoint
from tests.worker.model.quantization.pieces import assert_same_in_pieces

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
SIZE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="Triton's interpreter is for machines without a GPU, and needs triton",
)


def bnb_layer(bits: int, shape: LinearShape, weight: Tensor, *, piece: int) -> Linear:
    layer = (
        BnbInt8Linear(shape, device=CPU)
        if bits == 8
        else BnbNF4Linear(shape, dtype=torch.float32, device=CPU)
    )
    for start in range(0, len(weight), piece):
        layer.load_rows(start, weight[start : start + piece])
    return layer


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.13)])
def test_a_layer_is_near_the_exact_one_also_for_rows_with_outliers(bits: int, most: float) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 512), torch.randn(20, 512)
    x[7:12, 3] = 60
    exact = x @ weight.t()

    error = bnb_layer(bits, LinearShape.plain(512, 96), weight, piece=96)(x) - exact

    assert 0 < (error.norm(dim=1) / exact.norm(dim=1)).max() < most


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("piece", [1, 7, 64])
def test_a_layer_is_the_same_however_its_rows_came(bits: int, piece: int) -> None:
    torch.manual_seed(0)
    shape = LinearShape(128, {"q_proj": 80, "k_proj": 40}, has_bias=True)
    weight, bias, x = torch.randn(120, 128), torch.randn(120), torch.randn(5, 128)

    def make(num_rows: int) -> Linear:
        return bnb_layer(bits, shape, weight, piece=num_rows)

    assert_same_in_pieces(make, weight, bias, x, piece=piece)


@needs_bitsandbytes
def test_double_quantised_scales_are_those_of_the_library() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    weight = torch.randn(300, 128)
    theirs = dequantize_4bit(*quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4"))

    ours = bnb_layer(4, LinearShape.plain(128, 300), weight, piece=11)(torch.eye(128)).t()

    torch.testing.assert_close(ours, theirs)


@needs_bitsandbytes
def test_rows_that_are_no_whole_blocks_are_refused_with_what_is_not() -> None:
    with pytest.raises(ValueError, match="a layer has 100 inputs, and NF4 takes multiples of 64: use int8"):
        BnbNF4Linear(LinearShape.plain(100, 8), dtype=torch.float16, device=CPU)


@needs_bitsandbytes
@pytest.mark.parametrize(("name", "kind"), [("int8", BnbInt8Linear), ("int4", BnbNF4Linear)])
def test_only_the_decoders_layers_are_in_fewer_bits_and_a_checkpoint_loads_into_them(
    tmp_path: Path, name: str, kind: type
) -> None:
    write_checkpoint(tmp_path, text={**SIZE, "num_attention_heads": 4, "num_key_value_heads": 4})
    precision = choose_precision(name, CUDA)
    model = Llava(read_config(tmp_path), read_image_config(tmp_path), precision=precision, device=CPU)
    load_weights(model, tmp_path)

    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, Linear)}

    assert {type(layer) for path, layer in layers.items() if "language_model" in path} == {kind}
    assert {type(layer) for path, layer in layers.items() if "language_model" not in path} == {DenseLinear}
    out = layers["language_model.layers.0.mlp.down_proj"](torch.randn(3, 192, dtype=precision.dtype))
    assert out.isfinite().all() and out.abs().max() > 0


@needs_interpreter
@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.sampled_from([1, 3, 17, 33, 70]),
    inputs=st.sampled_from([40, 64, 128, 192, 200]),
    outputs=st.sampled_from([20, 32, 96, 130]),
    has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
def test_the_kernel_in_triton_multiplies_by_what_was_packed(
    num_rows: int, inputs: int, outputs: int, has_bias: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = LinearShape.plain(inputs, outputs, has_bias=has_bias)
    ours, torchs = (
        QuantizedLinear(shape, bits=4, kernels=kernels, device=CPU)
        for kernels in (W4A16Kernels(), TorchKernels())
    )
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    for layer in (ours, torchs):
        layer.load_rows(0, weight)
        if has_bias:
            layer.load_bias(0, bias)
    zero = torch.zeros(1, inputs)
    packed = torchs(torch.eye(inputs)) - torchs(zero)  # exactly: ones are whole numbers
    x = torch.randn(num_rows, inputs).to(dtype)

    y = ours(x)

    wanted = x.float() @ packed + (bias if has_bias else 0)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), wanted, rtol=tolerance, atol=tolerance)


def test_what_a_gpu_lacks_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_format_of_gpus_is_refused_on_a_cpu_with_what_is_served_there() -> None:
    with pytest.raises(
        ValueError, match="w4a16 cannot be had on cpu: use one of auto, fp32, bf16, fp16, int8"
    ):
        choose_precision("w4a16", CPU)
    with pytest.raises(ValueError, match="int8 cannot be had on xpu: use one of auto, fp32, bf16, fp16$"):
        choose_precision("int8", torch.device("xpu"))


@needs_bitsandbytes
def test_only_llm_int8_keeps_steps_from_being_recorded() -> None:
    names = ("fp16", "bf16", "int4", "w4a16", "w8a8", "fp8", "int8")
    assert [choose_precision(name, CUDA).is_capturable for name in names] == [True] * 6 + [False]
    assert choose_precision("int8", CPU).is_capturable


@needs_bitsandbytes
def test_what_the_weights_will_take_is_known_before_they_are_there(tmp_path: Path) -> None:
    size = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": 64}
    write_checkpoint(tmp_path, text={**size, "num_attention_heads": 8, "num_key_value_heads": 8})
    config, image = read_config(tmp_path), read_image_config(tmp_path)
    fp16 = weight_bytes(config, image, "fp16", CUDA)

    for name, most in (("int8", 0.54), ("int4", 0.30), ("w4a16", 0.30)):
        counted = weight_bytes(config, image, name, CUDA)
        model = Llava(config, image, precision=choose_precision(name, CUDA), device=CPU)
        load_weights(model, tmp_path)
        assert counted == sum(parameter.nbytes for parameter in model.parameters())
        assert counted < most * fp16
