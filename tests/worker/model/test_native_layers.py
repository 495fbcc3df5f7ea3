"""Steps that one native call computes agree with those computed by separate operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llava_worker.model.attention.base import AttentionPlan
from llava_worker.model.attention.cpu import CpuBackend
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.decoder import Decoder
from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import Linear
from llava_worker.model.peak_memory import PeakMemory
from llava_worker.model.quantization.precision import Precision, Role
from llava_worker.model.tensor_parallel import TensorParallel
from torch import Tensor

from tests.worker.model.attention_batches import BLOCK_SIZE, NUM_BLOCKS, make_metadata

CPU = torch.device("cpu")
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 3, 80, 6, 2, 48
Rows = list[tuple[int, int]]  # for each sequence, the numbers of new tokens and of all tokens

ONE: Rows = [(1, 37)]
SEVERAL: Rows = [(1, 3), (1, 38), (1, 1), (1, 20)]
MANY: Rows = [(1, 1 + i) for i in range(14)]  # more than fit in one tile
DRAFTS: Rows = [(1, 9), (4, 17)]
PROMPT: Rows = [(17, 17)]
CHUNKS: Rows = [(1, 9), (4, 17), (20, 33), (70, 90)]
BITS: dict[str, dict[Role, int]] = {
    "bf16": {},
    "int8": {"decoder": 8, "down_proj": 8},
    "int4": {"decoder": 4, "down_proj": 5},
}


def make_decoder(
    kernels: Kernels, bits: str, dtype: torch.dtype, ranks: TensorParallel | None = None, **options: Any
) -> Decoder:
    """Return a decoder with random weights. Its input size is not a multiple of the size of a group."""
    config = TextConfig.model_validate(
        {
            "vocab_size": 10,
            "hidden_size": HIDDEN,
            "intermediate_size": 600,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            **options,
        }
    )
    precision = Precision(bits, dtype, kernels, BITS[bits])
    decoder = Decoder(config, precision=precision, device=CPU, ranks=ranks or TensorParallel())
    for module in decoder.modules():
        if isinstance(module, Linear):
            size = module.shape.in_features
            module.load_rows(0, torch.randn(module.shape.out_features, size) / size**0.5)
            if module.bias is not None:
                module.load_bias(0, torch.randn(module.shape.out_features))
        else:
            for parameter in module.parameters(recurse=False):
                parameter.copy_(torch.randn(parameter.shape))
    return decoder


def make_cache(dtype: torch.dtype, *, is_int8: bool = False) -> KVCache:
    spec = KVCacheSpec(NUM_BLOCKS, BLOCK_SIZE, LAYERS, KV_HEADS, HEAD_DIM, dtype, is_int8, is_head_major=True)
    cache = KVCache(spec, CPU)
    for layer in range(LAYERS):
        k, v = (torch.randn(spec.num_tokens, KV_HEADS, HEAD_DIM).to(dtype) for _ in range(2))
        cache.write(layer, torch.arange(spec.num_tokens), k, v)
    return cache


class SeparateOperations(AttentionPlan):
    """A plan that native layers do not support."""

    def __init__(self, plan: AttentionPlan) -> None:
        self._plan = plan

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        return self._plan.attend(layer, q, k, v, window=window)


def calls_of(kernels: NativeKernels, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the names of native functions are added as they are called."""
    calls: list[str] = []
    call = kernels._call

    def record(name: str, *arguments: Any) -> None:
        calls.append(name)
        call(name, *arguments)

    monkeypatch.setattr(kernels, "_call", record)
    return calls


@torch.inference_mode()
def compute(decoder: Decoder, rows: Rows, *, is_int8: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Compute a step in one call and with separate operations.

    For both, return the hidden states and the tensors of the cache.
    """
    dtype = decoder.norm.weight.dtype
    metadata = make_metadata(rows)
    x = torch.randn(len(metadata.slot_mapping), HIDDEN).to(dtype)
    ends = zip(metadata.query_lens, metadata.context_lens, strict=True)
    positions = torch.tensor([n for length, end in ends for n in range(end - length, end)])
    caches = [make_cache(dtype, is_int8=is_int8) for _ in range(2)]
    for to, source in zip(caches[1].tensors, caches[0].tensors, strict=True):
        if to is not None and source is not None:
            to.copy_(source)
    assert isinstance(decoder.rotary._kernels, NativeKernels)
    backend = CpuBackend(decoder.rotary._kernels)
    plans = [backend.plan(metadata, caches[0]), SeparateOperations(backend.plan(metadata, caches[1]))]
    hidden = [decoder(x, positions, plan) for plan in plans]
    assert x.isfinite().all() and not torch.equal(hidden[0], x)
    tensors = [[hidden[i], *(each for each in caches[i].tensors if each is not None)] for i in range(2)]
    return tensors[0], tensors[1]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("bits", BITS)
def test_one_call_is_bitwise_identical_to_separate_operations(
    native: NativeKernels, bits: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if bits == "bf16" and not (native.packs_bf16 and dtype == torch.bfloat16):
        pytest.skip("torch computes these products")
    calls = calls_of(native, monkeypatch)
    variants: list[dict[str, Any]] = [
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ]
    for options in variants:
        decoder = make_decoder(native, bits, dtype, **options)
        with_prompts = (PROMPT, CHUNKS) if native.uses_prefill_attention(dtype) else ()
        for rows in (ONE, SEVERAL, DRAFTS, MANY, *with_prompts):
            for is_int8 in (False, True):
                calls.clear()
                actual, expected = compute(decoder, rows, is_int8=is_int8)
                assert_equal(actual, expected)
                assert calls[0] == "decoder_layers" and calls.count("decoder_layers") == 1


def test_one_call_computes_up_to_eight_rows_with_bf16_weights_that_are_not_packed(
    native: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if not native.has_bf16_linear:
        pytest.skip("torch computes these products")
    monkeypatch.setattr(native, "_variant", "amx")
    calls = calls_of(native, monkeypatch)
    decoder = make_decoder(native, "bf16", torch.bfloat16, attention_bias=True)

    assert_equal(*compute(decoder, MANY[:8]))
    assert calls[0] == "decoder_layers"
    calls.clear()
    assert_equal(*compute(decoder, MANY[:9]))
    assert "decoder_layers" not in calls


def test_one_call_computes_up_to_sixteen_rows_if_products_use_amx(
    native: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(native, "_variant", "amx")
    calls = calls_of(native, monkeypatch)
    decoder = make_decoder(native, "int8", torch.bfloat16)
    for rows, is_one_call in (([(1, 5)] * 16, True), ([(1, 5)] * 17, False), (PROMPT, False)):
        calls.clear()
        assert_equal(*compute(decoder, rows))
        assert ("decoder_layers" in calls) == is_one_call


def test_one_call_is_bitwise_identical_with_several_threads(native: NativeKernels) -> None:
    torch.manual_seed(0)
    decoder = make_decoder(native, "int4", torch.bfloat16)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for rows in (ONE, SEVERAL, PROMPT, CHUNKS):
            assert_equal(*compute(decoder, rows, is_int8=True))
    finally:
        torch.set_num_threads(threads)


def test_the_memory_that_one_call_needs_for_each_row_is_measured(native: NativeKernels) -> None:
    decoder = make_decoder(native, "int8", torch.float32)
    cache, backend = make_cache(torch.float32), CpuBackend(native)
    num_bytes = []
    for num_rows in (4, 16):
        plan = backend.plan(make_metadata([(1, 5)] * num_rows), cache)
        x, positions = torch.randn(num_rows, HIDDEN), torch.full((num_rows,), 4)
        with PeakMemory(CPU) as peak:
            decoder(x, positions, plan)
        num_bytes.append(peak.num_bytes)

    row_size = 2 * HIDDEN + 2 * (HEADS + KV_HEADS) * HEAD_DIM + 3 * 600
    assert num_bytes[1] - num_bytes[0] >= 12 * row_size * 4


def test_a_value_that_is_not_finite_affects_only_its_row(native: NativeKernels) -> None:
    torch.manual_seed(0)
    decoder = make_decoder(native, "int8", torch.float32)
    scales = decoder.get_parameter("layers.1.self_attn.qkv_proj.scales")
    scales[-1] = float("inf")  # of the last element of a value
    actual, expected = compute(decoder, [(1, 9), (1, 4)], is_int8=True)

    assert not actual[0].isfinite().any()
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


def test_other_steps_are_computed_by_separate_operations(
    native: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    calls = calls_of(native, monkeypatch)
    bf16, ranks = torch.bfloat16, TensorParallel(0, 2)
    monkeypatch.setattr(ranks, "all_reduce", lambda x: x)
    others = [
        (make_decoder(native, "int8", torch.float32), [(1, 9), *PROMPT]),
        (make_decoder(native, "int8", bf16, hidden_act="gelu"), ONE),
        (make_decoder(native, "int8", bf16, ranks), ONE),
        (make_decoder(native, "bf16", torch.float32), ONE),
    ]
    for decoder, rows in others:
        calls.clear()
        assert_equal(*compute(decoder, rows))
        assert "decoder_layers" not in calls and "decode_attention" in calls

    torch_decoder = make_decoder(TorchKernels(), "int8", torch.float32)
    assert torch_decoder._native_layers is None
