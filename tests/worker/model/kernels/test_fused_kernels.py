"""What the fused kernels promise: torch's answers, whatever the shape, or else they are left.

Without a GPU they run in Triton's interpreter, which rounds to bf16 otherwise than cards do.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.triton import TritonKernel
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.kernels.fused import FusedKernels, choose_kernels, self_test
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import Precision
from torch import Tensor

from tests.worker.checkpoints import random_prompt, write_checkpoint
from tests.worker.model.paged_rows import BLOCK, BLOCKS, LAYER, filled, pack

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU compiles the kernels: tests/gpu asks them there"
)


@pytest.fixture(scope="module")
def fused() -> FusedKernels:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    return FusedKernels()


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "dtype": st.sampled_from(list(TOLERANCE)),
        "rows": st.integers(0, 5),
        "size": st.sampled_from([1, 2, 31, 64, 100, 1030]),
        "heads": st.sampled_from([1, 3, 8]),
    }
)


def agree(ours: Tensor, theirs: Tensor) -> None:
    tolerance = TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_norms_with_and_without_a_sum_are_torchs(fused: FusedKernels, shape: dict) -> None:
    torch.manual_seed(shape["seed"])
    x, residual = torch.randn(2, shape["rows"], shape["size"]).to(shape["dtype"]) * 3
    weight = torch.randn(shape["size"]).to(shape["dtype"])
    agree(fused.rms_norm(x, weight, 1e-5), TorchKernels().rms_norm(x, weight, 1e-5))
    ours, theirs = (each.add_rms_norm(x, residual, weight, 1e-5) for each in (fused, TorchKernels()))
    agree(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])  # goes on through all layers: not a bit may be lost


@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_gates_are_torchs(fused: FusedKernels, shape: dict) -> None:
    torch.manual_seed(shape["seed"])
    x = torch.randn(shape["rows"], 2 * shape["size"]).to(shape["dtype"]) * 3
    agree(fused.silu_and_mul(x), TorchKernels().silu_and_mul(x))


@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_rotations_are_torchs_also_of_a_part_of_a_wider_row(fused: FusedKernels, shape: dict) -> None:
    torch.manual_seed(shape["seed"])
    heads, half, rows = shape["heads"], min(shape["size"], 64), shape["rows"]
    wide = torch.randn(rows, (heads + 5) * 2 * half).to(shape["dtype"])
    x = wide[:, 2 * half : (heads + 1) * 2 * half].view(rows, heads, 2 * half)
    angles = torch.randn(rows, 1, half).to(shape["dtype"])
    before = wide.clone()
    agree(*(each.rope(x, angles.cos(), angles.sin()) for each in (fused, TorchKernels())))
    assert torch.equal(wide, before)


kept_shapes = st.fixed_dictionaries(
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
@given(shape=kept_shapes)
def test_turned_queries_and_the_caches_slots_are_torchs_and_no_other_slot_is_touched(
    fused: FusedKernels, shape: dict
) -> None:
    torch.manual_seed(shape["seed"])
    rows, kv_heads, size = shape["rows"], shape["kv_heads"], shape["head_dim"]
    num_all = (shape["group"] + 2) * kv_heads
    qkv = torch.randn(rows, num_all + shape["is_part"], size).to(shape["dtype"])[:, :num_all]
    angles = torch.randn(rows, 1, size // 2).to(shape["dtype"])
    slots = torch.randperm(rows + 5)[:rows]
    if rows == 17:  # a recording's rows left over are its first row again
        qkv[12:], angles[12:], slots[12:] = qkv[:1], angles[:1], slots[:1]
    told = []
    for kernels in (fused, TorchKernels()):
        keys, values = torch.full((2, rows + 5, kv_heads, size), 9.0, dtype=shape["dtype"])
        told.append(
            [kernels.rope_and_cache(qkv, angles.cos(), angles.sin(), keys, values, slots), keys, values]
        )
    for ours, theirs in zip(*told, strict=True):
        agree(ours, theirs)
    assert torch.equal(told[0][2], told[1][2])  # values are moved, not computed
    unnamed = torch.ones(rows + 5, dtype=torch.bool).index_fill(0, slots, False)
    assert (told[0][1][unnamed] == 9).all() and (told[0][2][unnamed] == 9).all()


def test_a_head_that_is_not_a_number_spoils_no_other_nor_its_values(fused: FusedKernels) -> None:
    qkv, (keys, values) = torch.ones(1, 4, 4), torch.zeros(2, 1, 1, 4)
    qkv[0, 1, 0] = qkv[0, 3, 2] = torch.nan
    angles, slots = torch.full((1, 1, 2), 0.5), torch.tensor([0])
    q = fused.rope_and_cache(qkv, angles.cos(), angles.sin(), keys, values, slots)
    assert q[0, 0].isfinite().all() and keys.isfinite().all()
    assert values[0, 0].isnan().tolist() == [False, False, True, False]


def test_a_plan_that_turns_and_keeps_in_one_pass_attends_as_the_reference(fused: FusedKernels) -> None:
    """Decodes and a prompt's end, with a window; the cache is then the reference's, too."""
    torch.manual_seed(0)
    rows, qkv, angles = pack([(1, 9), (1, 30), (5, 21)]), torch.randn(7, 10, 16), torch.randn(7, 1, 8)
    reference = filled(False, 2, 16, torch.float32)
    cache = copy.deepcopy(reference)

    ours = PagedBackend(TritonKernel()).plan(rows, cache)
    out = ours.rope_and_attend(LAYER, qkv, Rotation(angles.cos(), angles.sin(), fused), kv_heads=2, window=11)

    plan = SdpaBackend().plan(rows, reference)
    rotation = Rotation(angles.cos(), angles.sin(), TorchKernels())
    wanted = plan.rope_and_attend(LAYER, qkv, rotation, kv_heads=2, window=11)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    everywhere = torch.arange(BLOCK * BLOCKS)
    for got, kept in zip(cache.gather(LAYER, everywhere), reference.gather(LAYER, everywhere), strict=True):
        torch.testing.assert_close(got, kept, rtol=1e-5, atol=1e-5)


def test_a_row_that_is_not_a_number_spoils_no_other(fused: FusedKernels) -> None:
    x = torch.randn(3, 40)
    x[1, 7] = torch.nan
    normed = fused.rms_norm(x, torch.ones(40), 1e-5)
    assert normed[1].isnan().all() and normed[[0, 2]].isfinite().all()


def test_a_decoder_over_them_has_torchs_logits(fused: FusedKernels, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    prompt = random_prompt(np.random.default_rng(0), num_images=0)
    num, told = len(prompt.token_ids), []
    for kernels in (fused, TorchKernels()):
        precision = Precision("fp32", torch.float32, kernels)
        model = Llava(read_config(tmp_path), read_image_config(tmp_path), precision=precision, device=CPU)
        load_weights(model, tmp_path)
        rows, x = pack([(num, num)]), model.embed(torch.tensor(prompt.token_ids))
        plan = SdpaBackend().plan(rows, filled(False, 2, 12, torch.float32))
        told.append(model.logits(model(x, torch.arange(num), plan)))
    torch.testing.assert_close(*told, rtol=1e-4, atol=1e-4)


class Forgetful(FusedKernels):
    """Right but for the last number of a gate."""

    def silu_and_mul(self, x: Tensor) -> Tensor:
        out = super().silu_and_mul(x)
        out[..., -1] = 0
        return out


class Misplacing(FusedKernels):
    """Right but for the slots, which are each the next one."""

    def rope_and_cache(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slots: Tensor
    ) -> Tensor:
        return super().rope_and_cache(qkv, cos, sin, keys, values, slots + 1)


class Refusing(FusedKernels):
    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_those_that_are_right_prove_it_and_others_are_told_of(fused: FusedKernels, dtype) -> None:
    assert self_test(fused, dtype, CPU) is None
    assert (self_test(Forgetful(), dtype, CPU) or "").startswith("silu_and_mul is ")
    assert (self_test(Misplacing(), dtype, CPU) or "").startswith("rope_and_cache is ")
    assert self_test(Refusing(), dtype, CPU) == (
        "RuntimeError: no kernel image is available for execution on the device"
    )


def test_without_a_gpu_torchs_own_serve() -> None:
    assert type(choose_kernels(torch.float32, CPU)) is TorchKernels
