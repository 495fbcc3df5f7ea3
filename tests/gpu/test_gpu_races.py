"""If several programs of a kernel compute one output, the output is the same in every run, bit by bit.

The programs write partial results, and the last program to finish combines them. Before each run, outputs and
partial results contain NaN. Products on another stream change the order in which the programs finish.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from llava_worker.model.attention.base import AttentionPlan
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.paged_batches import single_token_rows
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel
from llava_worker.model.kernels.fused import FusedKernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.triton_launch import semaphores
from llava_worker.model.kernels.w4a16 import W4A16Kernels
from llava_worker.model.kernels.w8a8 import W8A8_FORMATS
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.quantization.precision import precisions_on
from llava_worker.model.quantization.quantized_linear import QuantizedLinear
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan
from torch import Tensor

from tests.worker.model.attention_batches import LAYER, make_metadata, random_cache, random_tensor

RUNS = 50
HEADS = {"7B": (32, 32, 128), "mistral": (32, 8, 128), "13B": (40, 40, 128), "narrow": (4, 2, 64)}
WEIGHTS = [(4096, 4096), (4096, 11008), (15360, 5120)]  # outputs, inputs
ROWS = [1, 16, 17, 200]


def repeat(compute: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Return the output. All runs must have the same one and reset all semaphores."""
    noise = random_tensor(1024, 1024, dtype=torch.float16, device=device)
    other = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    outs = []
    with uninitialized_memory_is_nan():
        for _ in range(RUNS):
            with torch.cuda.stream(other):
                torch.matmul(noise, noise)
            outs.append(compute())
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert outs[0].isfinite().all()
    assert not semaphores(1, device).any()
    return outs[0]


@torch.inference_mode()
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outputs", "inputs"), WEIGHTS)
def test_products_with_4_bit_weights(device: torch.device, rows: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    shape = LinearShape.plain(inputs, outputs)
    layer = QuantizedLinear(shape, bits=4, kernels=W4A16Kernels(), device=device)
    layer.load_rows(0, random_tensor(outputs, inputs, device=device))
    x = random_tensor(rows, inputs, dtype=torch.float16, device=device)

    actual = repeat(lambda: layer(x), device)

    expected = layer(torch.cat([x, *[x[:1]] * 300]))[:rows]  # with many rows, nothing is split
    tolerance = 1e-2 * float(expected.std())
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("name", W8A8_FORMATS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outputs", "inputs"), WEIGHTS)
def test_products_with_8_bit_weights(
    device: torch.device, name: str, rows: int, outputs: int, inputs: int
) -> None:
    if name not in precisions_on(device):
        pytest.skip(f"this GPU does not support {name}")
    torch.manual_seed(0)
    kernels, fmt = FusedKernels(), W8A8_FORMATS[name]
    w = fmt.quantize(random_tensor(outputs, inputs, device=device))
    x = kernels.quantize_w8a8(random_tensor(rows, inputs, device=device), fmt)

    actual = repeat(lambda: kernels.linear_w8a8(x, w, None, fmt, torch.float16), device)

    expected = fmt.reference(*x, *w)
    torch.testing.assert_close(
        actual.float(), expected, rtol=2**-7, atol=2**-7 * float(expected.std()), check_dtype=False
    )


@torch.inference_mode()
@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_decodes_whose_contexts_are_divided_into_segments(
    device: torch.device, heads: str, is_int8: bool, is_mixed: bool
) -> None:
    num_heads, kv_heads, head_dim = HEADS[heads]
    half = torch.float16
    backend = PagedBackend(TritonKernel(), TritonDecodeKernel())
    for contexts in ([2000], [2000, 1, 70], [n + 1 for n in range(40)]):
        torch.manual_seed(0)
        cache = random_cache(kv_heads, head_dim, half, is_int8=is_int8, block_size=128, device=device)
        metadata = make_metadata([(1, n) for n in contexts], block_size=128, device=device)
        qkv = random_tensor(len(contexts), num_heads + 2 * kv_heads, head_dim, dtype=half, device=device)
        angles = random_tensor(len(contexts), 1, head_dim // 2, device=device)
        rotation = Rotation(angles.cos().half(), angles.sin().half(), TorchKernels())
        plan = backend.decode_plan(single_token_rows(metadata), cache, is_mixed=is_mixed)
        assert plan is not None

        def attend(plan: AttentionPlan, qkv: Tensor = qkv, rotation: Rotation = rotation) -> Tensor:
            return plan.rope_and_attend(LAYER, qkv, rotation, kv_heads=kv_heads)

        expected = attend(SdpaBackend().plan(metadata, cache))
        actual = repeat(lambda plan=plan: attend(plan), device)  # type: ignore[misc]

        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
