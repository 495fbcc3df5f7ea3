"""The kernels in C++ give what torch's give, in every variant that this machine can run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llava_worker.model.cpu.build import (
    VARIANTS,
    NativeKernelsUnavailable,
    capabilities,
    compile_to,
    load,
    variant_for,
)
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.quantization.quantized_linear import QuantizedLinear
from torch import Tensor

CPU = torch.device("cpu")
REFERENCE = TorchKernels()
# Rows, inputs, outputs: one of each; tiles and panels not full; several of both; a decoder's layer; a prompt.
SHAPES = [
    *((1, 1, 1), (1, 64, 32), (2, 100, 33), (12, 48, 80), (17, 130, 31), (26, 256, 97), (3, 704, 256)),
    *((32, 512, 64), (113, 650, 161)),
]
DTYPES = [torch.float32, torch.bfloat16]


def runnable() -> list[str]:
    try:
        best = variant_for(capabilities())
    except NativeKernelsUnavailable:
        return []
    return list(VARIANTS)[list(VARIANTS).index(best) :]


@pytest.fixture(scope="module", params=runnable() or [pytest.param("", marks=pytest.mark.skip("no AVX2"))])
def native(request: pytest.FixtureRequest) -> NativeKernels:
    try:
        return NativeKernels(load(request.param), request.param)
    except NativeKernelsUnavailable as error:
        pytest.skip(str(error))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    tolerance = 5e-5 if ours.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(
    kernels: NativeKernels | TorchKernels, bits: int, weight: Tensor, bias: Tensor | None
) -> QuantizedLinear:
    shape = LinearShape.plain(weight.shape[1], weight.shape[0], has_bias=bias is not None)
    made = QuantizedLinear(shape, bits=bits, kernels=kernels, device=CPU)
    made.load_rows(0, weight)
    if bias is not None:
        made.load_bias(0, bias)
    return made


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantised_layers_agree_with_torch(
    native: NativeKernels, bits: int, shape: tuple[int, int, int]
) -> None:
    rows, inputs, outputs = shape
    for dtype in DTYPES:
        x, weight = random(rows, inputs, dtype=dtype, seed=1), random(outputs, inputs, seed=2)
        for bias in (None, random(outputs, seed=3)):
            ours, theirs = (layer(kernels, bits, weight, bias) for kernels in (native, REFERENCE))

            assert torch.equal(ours.scales, theirs.scales)
            close(ours(x), theirs(x))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_comes_out_the_same_to_the_bit_whoever_stands_beside_it(
    native: NativeKernels, bits: int
) -> None:
    ours = layer(native, bits, random(70, 200, seed=1), random(70, seed=2))
    x = random(29, 200, seed=3)  # more rows than one alone takes another way in some variants

    together = ours(x)

    assert all(torch.equal(ours(x[row : row + 1])[0], together[row]) for row in range(len(x)))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_may_arrive_in_any_pieces(native: NativeKernels, bits: int) -> None:
    weight = random(75, 90)
    for kernels in (native, REFERENCE):
        pieces = layer(kernels, bits, torch.zeros_like(weight), None)
        for start, end in ((50, 75), (0, 1), (33, 50), (1, 33)):
            pieces.load_rows(start, weight[start:end])

        whole = layer(kernels, bits, weight, None)
        assert torch.equal(pieces.packed, whole.packed) and torch.equal(pieces.scales, whole.scales)
        pieces.load_rows(7, weight[8:9])
        assert not torch.equal(pieces.packed, whole.packed)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_no_number_spoils_its_own_row_and_no_other(native: NativeKernels, bits: int) -> None:
    for kernels in (native, REFERENCE):
        ours = layer(kernels, bits, random(40, 70), None)
        x = random(15, 70)
        sound = ours(x)
        x[3, 69], x[14, 0] = float("nan"), float("inf")

        y = ours(x)

        kept = [row for row in range(15) if row not in (3, 14)]
        assert torch.equal(y[kept], sound[kept])
        assert not y[[3, 14]].isfinite().any()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_of_zeros_gives_the_bias(native: NativeKernels, bits: int) -> None:
    bias = random(40, seed=2)
    weight = random(40, 70)
    weight[5] = 0

    for kernels in (native, REFERENCE):
        y = layer(kernels, bits, weight, bias)(torch.cat([torch.zeros(1, 70), torch.ones(1, 70)]))
        assert torch.equal(y[0], bias) and y[1, 5] == bias[5]
        assert not torch.equal(y[1], bias)


def test_bf16_layers_agree_with_torch(native: NativeKernels) -> None:
    for rows, inputs, outputs in (*SHAPES, (8, 96, 3), (16, 2048, 65)):
        x, weight = (random(n, inputs, dtype=torch.bfloat16, seed=n) for n in (rows, outputs))
        for bias in (None, random(outputs, dtype=torch.bfloat16)):
            exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
            y = native.linear(x, weight, bias)
            torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2 * inputs**0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 16, 50, 256])
def test_the_small_steps_agree_with_torch(native: NativeKernels, size: int, dtype: torch.dtype) -> None:
    x, weight = 4 * random(5, 2 * size, dtype=dtype), random(2 * size, dtype=dtype, seed=1)

    close(native.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    close(native.silu_and_mul(x), REFERENCE.silu_and_mul(x))
    close(native.quick_gelu(x), REFERENCE.quick_gelu(x))
    heads = random(5, 3 * 2 * size + 7, dtype=dtype)[:, : 3 * 2 * size].view(5, 3, 2 * size)  # rows lie apart
    angles = random(5, 1, size, seed=2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    close(native.rope(heads, cos, sin), REFERENCE.rope(heads, cos, sin))


def test_activations_hold_far_from_zero(native: NativeKernels) -> None:
    x = torch.tensor([[-1e30, -200, -88, -1, 0.0, 1, 88, 200]])

    close(native.quick_gelu(x), REFERENCE.quick_gelu(x))
    assert native.quick_gelu(torch.full((1, 1), float("nan"))).isnan().all()


def test_another_dtype_is_refused_or_left_to_torch(native: NativeKernels) -> None:
    x, weight = random(2, 64, dtype=torch.float16), random(3, 64, dtype=torch.float16)

    assert torch.equal(native.linear(x, weight, None), REFERENCE.linear(x, weight, None))
    with pytest.raises(TypeError, match=r"bf16 and fp32, not in torch.float16"):
        native.rms_norm(x, weight[0], 1e-5)


def test_a_machine_without_the_instructions_gets_the_reason() -> None:
    assert variant_for({"avx2": True, "fma3": True}) == "avx2"
    with pytest.raises(NativeKernelsUnavailable, match="no AVX2"):
        variant_for({"avx2": False, "fma3": True})
    with pytest.raises(NativeKernelsUnavailable, match="no AVX2"):
        variant_for({})  # another architecture


def test_a_machine_without_a_compiler_gets_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeKernelsUnavailable, match=r"no-such-compiler"):
        compile_to(tmp_path / "kernels.so", "avx2")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(NativeKernelsUnavailable, match="does not compile them"):
        compile_to(tmp_path / "kernels.so", "avx2")
    assert list(tmp_path.iterdir()) == []


def test_code_is_loaded_from_no_folder_that_others_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(NativeKernelsUnavailable, match="others may write there"):
        load("avx2", tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("places", "head_dim"), [(577, 64), (50, 16), (33, 72)])
def test_the_places_of_a_picture_see_each_other_as_in_torch(
    native: NativeKernels, places: int, head_dim: int, dtype: torch.dtype
) -> None:
    parts = random(2, places, 3 * 2 * head_dim).to(dtype).chunk(3, dim=-1)
    q, k, v = (part.view(2, places, 2, head_dim) for part in parts)

    for key in (k, k.transpose(1, 2).contiguous().transpose(1, 2)):  # beside the values, and not
        close(native.vision_attention(q, key, v), REFERENCE.vision_attention(q, key, v))
