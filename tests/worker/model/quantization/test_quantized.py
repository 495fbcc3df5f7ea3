"""Weights in 8 and 4 bits: near the exact ones, the same however they came, and no larger than they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.memory_budget import weight_bytes
from llava_worker.model.quantization.precision import Precision, choose_precision
from llava_worker.model.quantization.quantized_linear import QuantizedLinear
from torch import Tensor

from tests.worker.checkpoints import LLAVA_INTERLEAVE, write_checkpoint

CPU = torch.device("cpu")
NAMES = ["int8", "int4"]
KERNELS = {
    id(kernels): kernels for kernels in (choose_precision("int8", CPU).kernels, TorchKernels())
}.values()


def load(folder: Path, precision: Precision) -> Llava:
    model = Llava(read_config(folder), read_image_config(folder), precision=precision, device=CPU)
    load_weights(model, folder)
    return model


def quantised(weight: Tensor, bits: int, kernels) -> QuantizedLinear:
    made = QuantizedLinear(LinearShape.plain(*weight.t().shape), bits=bits, kernels=kernels, device=CPU)
    made.load_rows(0, weight)
    return made


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.13)])
def test_a_layer_is_near_the_exact_one_also_for_rows_with_outliers(bits: int, most: float, kernels) -> None:
    """As activations are: some rows are a hundred times the others."""
    weight, x = torch.randn(300, 2048), torch.randn(20, 2048)
    x[7:12] *= 100
    exact = x @ weight.t()

    error = (quantised(weight, bits, kernels)(x) - exact).norm(dim=1) / exact.norm(dim=1)

    assert error.min() > 0 and error.max() < most


def test_an_outlier_costs_its_group_and_no_more() -> None:
    weight, x = torch.randn(64, 512), torch.randn(1, 512)
    layer, sound = quantised(weight, 8, TorchKernels()), x.clone()
    x[0, 5] = 1e4
    exact = x @ weight.t()
    scale_of_group = 1e4 / 127

    assert (layer(x) - exact).abs().max() < scale_of_group * 256
    x[0, :256], sound[0, :256] = 0, 0
    assert torch.equal(layer(x), layer(sound))


def test_an_outlier_costs_its_own_row_only() -> None:
    weight, x = torch.randn(64, 256), torch.randn(4, 256)
    layer = quantised(weight, 8, TorchKernels())
    sound = layer(x)
    x[2, 5] = 1e4

    assert torch.equal(layer(x)[[0, 1, 3]], sound[[0, 1, 3]])
    assert not torch.equal(layer(x)[2], sound[2])


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
def test_what_8_and_4_bits_can_say_is_kept_exactly(kernels) -> None:
    whole = torch.randint(-127, 128, (40, 128)).float()
    whole[:, 0] = 127
    assert torch.allclose(quantised(whole / 8, 8, kernels)(torch.eye(128)).t(), whole / 8, rtol=1e-6)
    whole = torch.randint(-7, 8, (40, 128)).float()
    whole[:, ::64] = -8
    assert torch.allclose(quantised(whole / 4, 4, kernels)(torch.eye(128)).t(), whole / 4, rtol=1e-6)
    assert not torch.allclose(quantised(whole + 0.3, 4, kernels)(torch.eye(128)).t(), whole + 0.3, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_loading_quantised_is_loading_and_then_quantising(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    precision = choose_precision(name, CPU, is_small=True)
    loaded, exact = load(tmp_path, precision), load(tmp_path, choose_precision("fp32", CPU))
    layers = {path: layer for path, layer in loaded.named_modules() if isinstance(layer, QuantizedLinear)}

    assert len(layers) == len([layer for layer in exact.modules() if isinstance(layer, Linear)])
    for path, layer in layers.items():
        original = exact.get_submodule(path)
        assert isinstance(original, DenseLinear)
        bits = precision.bits["decoder" if path.startswith("language_model.") else "lm_head"]
        other = quantised(original.weight, bits, precision.kernels)
        assert torch.equal(layer.packed, other.packed) and torch.equal(layer.scales, other.scales)
        assert (layer.bias is None) == (original.bias is None)
        assert layer.bias is None or torch.equal(layer.bias, original.bias)


@pytest.mark.parametrize("name", NAMES)
def test_a_tied_head_stays_the_embedding_table(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, **LLAVA_INTERLEAVE)
    model = load(tmp_path, choose_precision(name, CPU, is_small=True))

    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    assert isinstance(model.language_model.layers[0].mlp.down_proj, QuantizedLinear)


def test_fewer_bits_take_less_memory(tmp_path: Path) -> None:
    size = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
    write_checkpoint(tmp_path, text=size)
    config, image = read_config(tmp_path), read_image_config(tmp_path)
    fp32 = weight_bytes(config, image, "fp32")

    assert 0.25 < weight_bytes(config, image, "int8") / fp32 < 0.28
    assert 0.13 < weight_bytes(config, image, "int4") / fp32 < 0.16
    assert weight_bytes(config, image, "bf16") / fp32 == 0.5


PEAK = """
import sys
from pathlib import Path
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.model.loading.weights import load_weights

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024

torch.set_num_threads(1)
folder, cpu = Path(sys.argv[1]), torch.device("cpu")
precision = choose_precision(sys.argv[2], cpu)
before = peak()
model = Llava(read_config(folder), read_image_config(folder), precision=precision, device=cpu)
load_weights(model, folder)
print(peak() - before - sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.mark.e2e
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's to tell")
@pytest.mark.parametrize("name", NAMES)
def test_loading_takes_one_piece_more_than_the_quantised_weights(tmp_path: Path, name: str) -> None:
    """300 MB in fp32. A piece is 8 MiB of the file, with what it becomes on its way."""
    size = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 5, "vocab_size": 8000}
    write_checkpoint(tmp_path, text={**size, "num_key_value_heads": 4, "initializer_range": 0.02})
    command = [sys.executable, "-c", PEAK, str(tmp_path), name]

    done = subprocess.run(command, check=True, capture_output=True, text=True)

    assert int(done.stdout) < 64 << 20
