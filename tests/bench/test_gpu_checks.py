"""The checks of the GPU session pass for correct kernels and models, and find wrong ones."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from llava_worker.engine import StepOutput
from llava_worker.engine.core.outputs import TokenLogprobs
from llava_worker.model.attention.base import AttentionMetadata, AttentionPlan
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.attention.paged import PagedBackend, QueryRows
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel
from llava_worker.model.kernels.fused import FusedKernels
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import Linear
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.quantization.precision import Precision, choose_precision
from torch import Tensor

from bench.engine.engine_alone import SequenceGenerator
from bench.engine.random_engine import make_model
from bench.gpu.session.kernels import REHEARSAL_SIZES, check_attention, check_fused, check_linear
from bench.gpu.session.measurement import CheckFailed
from bench.gpu.session.model import first_difference, forced_logits
from bench.gpu.transformers import measure_continuous, measure_generate
from bench.shape import MINI

CPU = torch.device("cpu")
SIZES = replace(REHEARSAL_SIZES, num_trials=3)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)


class IncompleteAttention(TritonKernel):
    """A kernel that does not write the output of the last token."""

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        complete = super().attend(q, cache, rows, window)
        out = torch.empty_like(complete)
        out[:-1] = complete[:-1]
        return out


class ShiftedAttention(TritonKernel):
    """A kernel that ignores the last token of long contexts."""

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        contexts = torch.where(rows.contexts > 30, rows.contexts - 1, rows.contexts)
        return super().attend(q, cache, replace(rows, contexts=contexts), window)


def test_a_correct_attention_kernel_passes() -> None:
    for decode_kernel in (None, TritonDecodeKernel()):
        figures = check_attention(PagedBackend(TritonKernel(), decode_kernel), "fp32", SIZES, CPU)
        assert figures["max_error"] < 1e-3 and figures["num_cases"] == 6


class WrongCacheBackend(SdpaBackend):
    """A backend that writes unrotated keys to the cache."""

    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        return UnrotatedPlan(super().plan(metadata, cache))


class UnrotatedPlan(AttentionPlan):
    def __init__(self, plan: AttentionPlan) -> None:
        self._plan = plan

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        return self._plan.attend(layer, q, k, v, window=window)

    def rope_and_attend(
        self, layer: int, qkv: Tensor, rotation: Rotation, *, kv_heads: int, window: int | None = None
    ) -> Tensor:
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        return self.attend(layer, rotation.apply(q), k, v, window=window)


def test_wrong_keys_in_the_cache_are_found() -> None:
    assert check_attention(SdpaBackend(), "fp32", SIZES, CPU)["max_error"] < 1e-3
    with pytest.raises(CheckFailed, match=r"6 of 6 cases exceed the tolerance"):
        check_attention(WrongCacheBackend(), "fp32", SIZES, CPU)


@pytest.mark.parametrize("kernel", [IncompleteAttention, ShiftedAttention])
def test_a_wrong_attention_kernel_is_found(kernel: type[TritonKernel]) -> None:
    with pytest.raises(CheckFailed, match=r"exceed the tolerance of 0.001"):
        check_attention(PagedBackend(kernel()), "fp32", SIZES, CPU)


class IncompleteNorm(FusedKernels):
    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        norm, _ = super().add_rms_norm(x, residual, weight, eps)
        return norm, torch.empty_like(x)


class WrongSlots(FusedKernels):
    def rope_and_cache(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        return super().rope_and_cache(qkv, cos, sin, cache, slots.flip(0))


@pytest.mark.parametrize("kernels", [FusedKernels, TorchKernels])
def test_correct_fused_kernels_pass(kernels: type[TorchKernels]) -> None:
    assert check_fused(kernels(), "fp32", SIZES, CPU)["max_error"] < 1e-5


@pytest.mark.parametrize(
    ("kernels", "name"), [(IncompleteNorm, "add_rms_norm"), (WrongSlots, "rope_and_cache")]
)
def test_a_wrong_fused_kernel_is_found_and_named(kernels: type[FusedKernels], name: str) -> None:
    with pytest.raises(CheckFailed, match=name):
        check_fused(kernels(), "fp32", SIZES, CPU)


class WrongForManyRows(TorchKernels):
    """Kernels that multiply only the first 16 rows."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = super().linear(x, weight, bias)
        return y if len(y) > 100 else torch.cat([y[:16], torch.empty_like(y[16:])])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_linear_layers_of_all_precisions_pass(precision: str) -> None:
    figures = list(check_linear(choose_precision(precision, CPU), SIZES, CPU))
    assert [each.keys() for each in figures[:1]] == [{"weights"}] and "max_error" in figures[1]


def test_wrong_products_and_wrong_weights_are_found() -> None:
    with pytest.raises(CheckFailed, match="rows, 64 x 128"):
        list(check_linear(Precision("fp32", torch.float32, WrongForManyRows()), SIZES, CPU))

    class WrongWeights(TorchKernels):
        def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super().linear(x, weight * 1.1, bias)

    with pytest.raises(CheckFailed, match="stored weights 64 x 128"):
        list(check_linear(Precision("fp32", torch.float32, WrongWeights()), SIZES, CPU))


def test_logits_do_not_depend_on_the_number_of_decode_steps() -> None:
    model = make_model(MINI, choose_precision("fp32", CPU), CPU)
    row = torch.randint(1000, (37,))
    expected = forced_logits(model, SdpaBackend(), [row], num_forced=0)
    assert expected.shape == (37, MINI.vocabulary)
    torch.testing.assert_close(forced_logits(model, SdpaBackend(), [row], num_forced=9), expected)


def outputs(*token_ids: int, second: tuple[int, float] = (7, -1.0)) -> list[StepOutput]:
    """Return outputs whose tokens have a log-probability of -0.95."""
    return [
        StepOutput("a", token_id, logprobs=TokenLogprobs(-0.95, ((token_id, -0.95), second)))
        for token_id in token_ids
    ]


def test_equal_outputs_and_ties_are_not_different() -> None:
    assert first_difference(outputs(1, 2, 3), outputs(1, 2, 3), tie=0.0) == ""
    assert first_difference(outputs(1, 2, 3), outputs(1, 7, 9), tie=0.1) == ""


@pytest.mark.parametrize(("tie", "token_id"), [(0.01, 7), (0.1, 8)])
def test_outputs_are_different_if_the_token_is_less_likely(tie: float, token_id: int) -> None:
    found = first_difference(outputs(1, 2), outputs(1, token_id), tie=tie)
    assert found.startswith(f"token 1 is {token_id} instead of 2; the two most likely tokens are ")


@torch.inference_mode()
def test_random_weights_are_the_same_in_all_precisions_and_activations_are_in_range() -> None:
    models = [make_model(MINI, choose_precision(name, CPU), CPU) for name in ("fp32", "fp16")]
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(*(each.float() for each in parameters), rtol=1e-3, atol=1e-4)
    for layer in models[0].modules():
        if isinstance(layer, Linear):
            assert 0.5 < float(layer(torch.randn(50, layer.shape.in_features)).std()) < 2
    tiles = torch.randint(0, 256, (2, MINI.image_side, MINI.image_side, 3), dtype=torch.uint8)
    assert models[0].encode(tiles).isfinite().all()


def test_transformers_generate_has_all_metrics() -> None:
    results = measure_generate(MINI, CPU, [1, 2], 8)

    assert results.keys() == {"1", "2"}
    for case in results.values():
        assert case.keys() == {"ttft_s", "decode_step_s", "output_tokens_per_s", "wall_s"}
        assert min(case["ttft_s"], case["output_tokens_per_s"], case["wall_s"]) > 0


def test_transformers_continuous_batching_has_the_metrics_of_the_engine() -> None:
    generator = SequenceGenerator(MINI.image_token_id, MINI.image_tokens, MINI.image_side, MINI.vocabulary)
    prompts = [[generator.text(1).prompt_ids for _ in range(num)] for num in (1, 3)]
    results = measure_continuous(MINI, CPU, prompts, 8)

    assert results.keys() == {"1", "3"}
    for num, case in results.items():
        assert case.keys() == {"prompt_tokens", "ttft_s", "decode_step_s", "output_tokens_per_s", "wall_s"}
        assert case["prompt_tokens"] == len(prompts[0][0])
        assert len(case["ttft_s"]) == int(num) and 0 < case["ttft_s"][0] < case["wall_s"]
