"""The fused kernels match the torch kernels for all shapes. If they do not, the torch kernels are used.

Without a GPU, the fused kernels run in Triton's interpreter, which rounds to bf16 differently than GPUs do.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.triton import TritonKernel
from llava_worker.model.kernels.fused import FusedKernels, choose_kernels, self_test
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.quantization.precision import Precision
from torch import Tensor

from tests.worker.checkpoints import random_prompt, write_checkpoint
from tests.worker.model.attention_batches import BLOCK_SIZE, LAYER, NUM_BLOCKS, make_metadata, random_cache
from tests.worker.model.load_model import load_model

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
TORCH = TorchKernels()

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU, the compiled kernels are tested in tests/gpu"
)


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "dtype": st.sampled_from(list(TOLERANCE)),
        "rows": st.integers(0, 5),
        "size": st.sampled_from([1, 2, 31, 64, 100, 1030]),
        "heads": st.sampled_from([1, 3, 8]),
    }
)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_norms_with_and_without_a_residual_agree_with_torch(
    fused: FusedKernels, shape: dict[str, Any]
) -> None:
    torch.manual_seed(shape["seed"])
    x, residual = torch.randn(2, shape["rows"], shape["size"]).to(shape["dtype"]) * 3
    weight = torch.randn(shape["size"]).to(shape["dtype"])
    assert_close(fused.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
    normed, total = fused.add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = TORCH.add_rms_norm(x, residual, weight, 1e-5)
    assert_close(normed, expected)
    assert torch.equal(total, expected_total)  # must be exact, because the residual passes through all layers


@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_silu_and_mul_agrees_with_torch(fused: FusedKernels, shape: dict[str, Any]) -> None:
    torch.manual_seed(shape["seed"])
    x = torch.randn(shape["rows"], 2 * shape["size"]).to(shape["dtype"]) * 3
    assert_close(fused.silu_and_mul(x), TORCH.silu_and_mul(x))


@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_rope_agrees_with_torch_for_strided_rows(fused: FusedKernels, shape: dict[str, Any]) -> None:
    torch.manual_seed(shape["seed"])
    heads, half, rows = shape["heads"], min(shape["size"], 64), shape["rows"]
    wide = torch.randn(rows, (heads + 5) * 2 * half).to(shape["dtype"])
    x = wide[:, 2 * half : (heads + 1) * 2 * half].view(rows, heads, 2 * half)
    angles = torch.randn(rows, 1, half).to(shape["dtype"])
    before = wide.clone()
    assert_close(fused.rope(x, angles.cos(), angles.sin()), TORCH.rope(x, angles.cos(), angles.sin()))
    assert torch.equal(wide, before)


qkv_shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "dtype": st.sampled_from(list(TOLERANCE)),
        "rows": st.sampled_from([0, 1, 2, 17]),
        "head_dim": st.sampled_from([2, 64, 80, 128]),
        "kv_heads": st.sampled_from([1, 2, 5]),
        "group": st.sampled_from([1, 3, 7]),
        "is_part": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None)
@given(shape=qkv_shapes)
def test_rope_and_cache_agrees_with_torch_and_writes_only_to_its_slots(
    fused: FusedKernels, shape: dict[str, Any]
) -> None:
    torch.manual_seed(shape["seed"])
    rows, kv_heads, size = shape["rows"], shape["kv_heads"], shape["head_dim"]
    num_all = (shape["group"] + 2) * kv_heads
    qkv = torch.randn(rows, num_all + shape["is_part"], size).to(shape["dtype"])[:, :num_all]
    angles = torch.randn(rows, 1, size // 2).to(shape["dtype"])
    slots = torch.randperm(rows + 5)[:rows]
    if rows == 17:  # in a CUDA graph, unused rows are copies of the first row
        qkv[12:], angles[12:], slots[12:] = qkv[:1], angles[:1], slots[:1]
    outputs = []
    for kernels in (fused, TORCH):
        keys, values = torch.full((2, rows + 5, kv_heads, size), 9.0, dtype=shape["dtype"])
        q = kernels.rope_and_cache(qkv, angles.cos(), angles.sin(), LayerCache(keys, values, 1), slots)
        outputs.append((q, keys, values))
    (q, keys, values), (expected_q, expected_keys, expected_values) = outputs
    assert_close(q, expected_q)
    assert_close(keys, expected_keys)
    assert torch.equal(values, expected_values)  # copied, not computed
    is_other = torch.ones(rows + 5, dtype=torch.bool).index_fill(0, slots, False)
    assert (keys[is_other] == 9).all() and (values[is_other] == 9).all()


def test_a_nan_affects_only_its_head(fused: FusedKernels) -> None:
    qkv, (keys, values) = torch.ones(1, 4, 4), torch.zeros(2, 1, 1, 4)
    qkv[0, 1, 0] = qkv[0, 3, 2] = torch.nan
    angles, slots = torch.full((1, 1, 2), 0.5), torch.tensor([0])
    q = fused.rope_and_cache(qkv, angles.cos(), angles.sin(), LayerCache(keys, values, 1), slots)
    assert q[0, 0].isfinite().all() and keys.isfinite().all()
    assert values[0, 0].isnan().tolist() == [False, False, True, False]


def test_a_plan_with_rope_and_cache_agrees_with_the_reference(fused: FusedKernels) -> None:
    """The batch contains decodes and the last chunk of a prompt. The caches must match, too."""
    torch.manual_seed(0)
    metadata, qkv = make_metadata([(1, 9), (1, 30), (5, 21)]), torch.randn(7, 10, 16)
    angles = torch.randn(7, 1, 8)
    reference = random_cache(2, 16)
    cache = copy.deepcopy(reference)

    plan = PagedBackend(TritonKernel()).plan(metadata, cache)
    rotation = Rotation(angles.cos(), angles.sin(), fused)
    actual = plan.rope_and_attend(LAYER, qkv, rotation, kv_heads=2, window=11)

    plan = SdpaBackend().plan(metadata, reference)
    rotation = Rotation(angles.cos(), angles.sin(), TORCH)
    expected = plan.rope_and_attend(LAYER, qkv, rotation, kv_heads=2, window=11)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    slots = torch.arange(BLOCK_SIZE * NUM_BLOCKS)
    for stored, wanted in zip(cache.gather(LAYER, slots), reference.gather(LAYER, slots), strict=True):
        torch.testing.assert_close(stored, wanted, rtol=1e-5, atol=1e-5)


def test_a_nan_affects_only_its_row(fused: FusedKernels) -> None:
    x = torch.randn(3, 40)
    x[1, 7] = torch.nan
    normed = fused.rms_norm(x, torch.ones(40), 1e-5)
    assert normed[1].isnan().all() and normed[[0, 2]].isfinite().all()


def test_a_decoder_with_fused_kernels_returns_the_logits_of_torch(
    fused: FusedKernels, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path)
    token_ids = torch.tensor(random_prompt(np.random.default_rng(0), num_images=0).token_ids)
    num = len(token_ids)
    logits = []
    for kernels in (fused, TORCH):
        model = load_model(tmp_path, Precision("fp32", torch.float32, kernels))
        plan = SdpaBackend().plan(make_metadata([(num, num)]), random_cache(2, 12))
        logits.append(model.logits(model(model.embed(token_ids), torch.arange(num), plan)))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


class WrongGate(FusedKernels):
    """Kernels whose gated activation returns a wrong value for the last element of each row."""

    def silu_and_mul(self, x: Tensor) -> Tensor:
        out = super().silu_and_mul(x)
        out[..., -1] = 0
        return out


class WrongSlots(FusedKernels):
    """Kernels that write to the wrong slots."""

    def rope_and_cache(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        return super().rope_and_cache(qkv, cos, sin, cache, slots + 1)


class UnwrittenSum(FusedKernels):
    """Kernels that do not write the second output of a kernel."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return super().add_rms_norm(x, residual, weight, eps)[0], torch.empty_like(x)


class Raising(FusedKernels):
    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")


def test_the_self_test_passes_and_detects_errors(fused: FusedKernels) -> None:
    for dtype in TOLERANCE:
        assert self_test(fused, dtype, CPU) is None
        assert (self_test(WrongGate(), dtype, CPU) or "").startswith("the maximum error of silu_and_mul is ")
        assert (self_test(WrongSlots(), dtype, CPU) or "").startswith(
            "the maximum error of rope_and_cache is "
        )
        assert (self_test(UnwrittenSum(), dtype, CPU) or "").startswith(
            "the maximum error of add_rms_norm is nan"
        )
        assert self_test(Raising(), dtype, CPU) == (
            "RuntimeError: no kernel image is available for execution on the device"
        )


def test_without_a_gpu_torch_kernels_are_used() -> None:
    assert type(choose_kernels(torch.float32, CPU)) is TorchKernels
