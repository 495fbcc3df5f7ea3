"""Paged attention kernels match the reference. If none of them does, the reference is used instead.

Without a GPU, the Triton kernel runs in Triton's interpreter, which does not support bf16 products. The
FlashAttention kernels are tested only on GPUs (tests/gpu).
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import llava_worker
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.base import DecodeMetadata
from llava_worker.model.attention.flash import Flash3Kernel, FlashAttnKernel, VarlenKernel
from llava_worker.model.attention.paged import KernelUnavailable, PagedBackend, PagedKernel, QueryRows
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.select import first_passing, kernels_for
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel
from llava_worker.model.config.model_config import read_config
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.layers.rotary import Rotation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.worker.model.attention_batches import (
    BLOCK_SIZE,
    LAYER,
    NUM_BLOCKS,
    attend,
    make_metadata,
    random_cache,
    random_qkv,
)
from tests.worker.model.reference_kernel import ReferenceKernel

CPU = torch.device("cpu")
GPUS = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]
TEXT = read_config(Path(llava_worker.__file__).parent / "tiny").text_config

needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU, the compiled kernel is tested in tests/gpu"
)


@pytest.fixture(scope="module")
def triton_kernel() -> TritonKernel:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    return TritonKernel()


class WrongKernel(ReferenceKernel):
    """A kernel whose result for the last token in the last row is wrong."""

    name = "wrong"

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        out = super().attend(q, cache, rows, window)
        out[int(rows.starts[-1]) - 1] *= 1.5
        return out


class FirstRowKernel(ReferenceKernel):
    """A kernel that writes only the outputs of the first row if it has several rows with long contexts."""

    name = "first row"

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        out = super().attend(q, cache, rows, window)
        if rows.max_context < 200:
            return out
        written, end = torch.empty_like(out), int(rows.starts[1])
        written[:end] = out[:end]
        return written


class WrongShapeKernel(ReferenceKernel):
    """A kernel that is wrong only for one number of rows with long contexts, and one number of new tokens."""

    name = "wrong shape"
    shape = (1, 1)  # rows, new tokens per row

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        out = super().attend(q, cache, rows, window)
        is_wrong = (len(rows.contexts), rows.max_query) == self.shape and rows.max_context >= 200
        return out * 1.5 if is_wrong else out


class RaisingKernel(ReferenceKernel):
    name = "raising"

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")


class LateError(Tensor):
    """A tensor whose kernel failed, which is reported only when the tensor is used."""

    def float(self, *args: Any, **options: Any) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class LateKernel(ReferenceKernel):
    name = "late"

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        return super().attend(q, cache, rows, window).as_subclass(LateError)


def unavailable() -> PagedKernel:
    raise KernelUnavailable("the kernel is not installed")


batches = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "dtype": st.sampled_from([torch.float32, torch.float16]),
        "kv_heads": st.sampled_from([1, 2, 3]),
        "group": st.sampled_from([1, 2, 7]),
        "head_dim": st.sampled_from([16, 20, 64]),
        "decodes": st.lists(st.integers(1, 40), max_size=2),
        "prompts": st.lists(st.tuples(st.integers(2, 25), st.integers(0, 5)), max_size=1),
        "window": st.sampled_from([None, 1, 3, 17, 100]),
    }
)


def assert_agrees_with_reference(kernel: PagedKernel, batch: dict[str, Any]) -> None:
    torch.manual_seed(batch["seed"])
    dtype, kv_heads, head_dim = batch["dtype"], batch["kv_heads"], batch["head_dim"]
    prompts = [(new, new + before) for new, before in batch["prompts"]]
    metadata = make_metadata([(1, n) for n in batch["decodes"]] + prompts or [(1, 33)])
    num_tokens = len(metadata.slot_mapping)
    qkv = random_qkv(num_tokens, kv_heads * batch["group"], kv_heads, head_dim, dtype=dtype)
    cache = random_cache(kv_heads, head_dim, dtype)

    actual = attend(PagedBackend(kernel), metadata, cache, qkv, batch["window"])

    expected = attend(SdpaBackend(), metadata, cache, qkv, batch["window"])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(batch=batches)
def test_a_kernel_receives_the_rows_of_the_batch(batch: dict[str, Any]) -> None:
    assert_agrees_with_reference(ReferenceKernel(), batch)


@needs_interpreter
@settings(max_examples=40, deadline=None)
@given(batch=batches)
def test_the_triton_kernel_agrees_with_the_reference(
    triton_kernel: TritonKernel, batch: dict[str, Any]
) -> None:
    assert_agrees_with_reference(triton_kernel, batch)


@needs_interpreter
def test_the_triton_kernel_does_not_read_a_nan_in_another_row(triton_kernel: TritonKernel) -> None:
    torch.manual_seed(0)
    cache = random_cache(2, 16)
    metadata = make_metadata([(1, 30), (1, 9), (6, 21)])
    qkv = random_qkv(8, 2, 2, 16)
    is_unseen = torch.ones(NUM_BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    for table, context in zip(metadata.block_tables, metadata.context_lens, strict=True):
        positions = torch.arange(context)
        is_unseen[table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE] = False
    unseen = is_unseen.nonzero()[:, 0]
    nan = torch.full((len(unseen), 2, 16), torch.nan)
    cache.write(LAYER, unseen, nan, nan)
    qkv[1][0, 0, 0] = torch.nan

    out = attend(PagedBackend(triton_kernel), metadata, cache, qkv)

    assert out[1:].isfinite().all()
    assert out[0, 0].isnan().all() and out[0, 1].isfinite().all()  # only the head with the NaN is affected


@needs_interpreter
def test_a_decode_plan_uses_the_current_contents_of_its_tensors(triton_kernel: TritonKernel) -> None:
    """After the plan is created, the contents of its tensors change, as when a CUDA graph is replayed."""
    torch.manual_seed(0)
    cache = random_cache(2, 16)
    first, second = (make_metadata([(1, n) for n in contexts]) for contexts in ([30, 9, 1], [3, 17, 26]))
    inputs = DecodeMetadata(
        slot_mapping=first.slot_mapping.clone(),
        context_lens=torch.tensor(first.context_lens, dtype=torch.int32),
        block_tables=torch.zeros(3, 10, dtype=torch.int32),
    )
    plan = PagedBackend(triton_kernel).decode_plan(inputs, cache)
    assert plan is not None
    for metadata in (first, second):
        inputs.slot_mapping.copy_(metadata.slot_mapping)
        inputs.context_lens.copy_(torch.tensor(metadata.context_lens))
        inputs.block_tables[:, : metadata.block_tables.shape[1]] = metadata.block_tables
        qkv = random_qkv(3, 2, 2, 16)
        q, k, v = qkv

        actual = plan.attend(LAYER, q, k, v)

        torch.testing.assert_close(actual, attend(SdpaBackend(), metadata, cache, qkv))


class WrongGraphKernel(TritonDecodeKernel):
    """A kernel that ignores the last token of contexts in CUDA graphs for mixed steps."""

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        return super().attend(q, cache, replace(rows, contexts=rows.contexts - 1), window)


class WrongDecodeKernel(TritonDecodeKernel):
    """A kernel for decodes that does not write the last element of each output."""

    def rope_and_attend(
        self,
        qkv: Tensor,
        rotation: Rotation,
        cache: LayerCache,
        slots: Tensor,
        rows: QueryRows,
        window: int | None,
    ) -> Tensor:
        out = super().rope_and_attend(qkv, rotation, cache, slots, rows, window)
        written = torch.empty_like(out)
        written[..., :-1] = out[..., :-1]
        return written


@needs_interpreter
@pytest.mark.parametrize("is_int8_cache", [False, True])
def test_a_decode_kernel_is_used_only_if_it_passes(
    triton_kernel: TritonKernel, caplog: pytest.LogCaptureFixture, is_int8_cache: bool
) -> None:
    text = TextConfig(
        hidden_size=32, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=100
    )

    def choose(decode_kernel: TritonDecodeKernel) -> str:
        decode_kernels = [decode_kernel, None]
        return first_passing(
            [TritonKernel], decode_kernels, text, torch.float32, CPU, is_int8_cache=is_int8_cache
        ).name

    assert choose(TritonDecodeKernel()) == "Triton with Triton decoding"
    assert choose(WrongDecodeKernel()) == "Triton"
    assert choose(WrongGraphKernel()) == "Triton"
    assert "Triton with Triton decoding failed its self-test: the maximum error is nan" in caplog.text


def test_gpus_older_than_ampere_use_the_reference_and_the_reason_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    candidates, decode_kernels = kernels_for(torch.float16, (7, 5))

    backend = first_passing(candidates, decode_kernels, TEXT, torch.float16, CPU)

    assert isinstance(backend, SdpaBackend)
    assert "the Triton kernel requires compute capability 8.0 or higher, and this GPU has 7.5" in caplog.text


def test_an_int8_cache_uses_only_triton_kernels() -> None:
    assert kernels_for(torch.float16, (8, 0))[0] == [FlashAttnKernel, VarlenKernel, TritonKernel]
    assert kernels_for(torch.float16, (8, 0), is_int8_cache=True)[0] == [TritonKernel]
    assert kernels_for(torch.float32, (8, 0))[0] == [TritonKernel]


def test_flash_attention_3_is_tried_only_on_hopper_gpus() -> None:
    has_it = {capability: Flash3Kernel in kernels_for(torch.float16, capability)[0] for capability in GPUS}
    assert has_it == {(8, 0): False, (8, 9): False, (9, 0): True, (10, 0): False, (12, 0): False}


def test_the_first_kernel_that_passes_is_used_and_the_reasons_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    candidates = [unavailable, RaisingKernel, LateKernel, WrongKernel, ReferenceKernel]

    with caplog.at_level(logging.INFO):
        backend = first_passing(candidates, [None], TEXT, torch.float32, CPU)

    assert backend.name == "reference"
    assert "raising failed its self-test: RuntimeError: no kernel image" in caplog.text
    assert "late failed its self-test: RuntimeError: CUDA error: an illegal memory access" in caplog.text
    assert "wrong failed its self-test: the maximum error is" in caplog.text
    assert "attention: reference; the kernel is not installed; raising failed its self-test" in caplog.text


def test_an_error_that_the_device_reports_after_the_self_test_rejects_the_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)

    backend = first_passing([ReferenceKernel], [None], TEXT, torch.float32, CPU)

    assert isinstance(backend, SdpaBackend)
    assert "reference failed its self-test: RuntimeError: CUDA error: an illegal memory" in caplog.text


def test_a_kernel_that_leaves_the_outputs_of_some_rows_unwritten_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = first_passing([FirstRowKernel], [None], TEXT, torch.float32, CPU)

    assert isinstance(backend, SdpaBackend)
    assert "first row failed its self-test: the maximum error is nan for rows with (5,)" in caplog.text
    assert not torch.are_deterministic_algorithms_enabled()  # requested only during the self-test


@pytest.mark.parametrize("new_tokens", [1, 5])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 16])
def test_a_kernel_that_is_wrong_for_one_number_of_rows_is_not_used(
    monkeypatch: pytest.MonkeyPatch, num_rows: int, new_tokens: int
) -> None:
    """Kernels choose code paths by the number of rows, so the self-test covers several."""
    monkeypatch.setattr(WrongShapeKernel, "shape", (num_rows, new_tokens))
    backend = first_passing([WrongShapeKernel], [None], TEXT, torch.float32, CPU)
    assert isinstance(backend, SdpaBackend)


def test_without_a_kernel_that_passes_the_reference_is_used_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = first_passing([unavailable, WrongKernel], [None], TEXT, torch.float32, CPU)

    assert isinstance(backend, SdpaBackend)
    assert "sdpa, which is slow because it gathers the KV cache; the kernel is not installed" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash-attn may be installed on a machine with a GPU")
def test_a_missing_flash_attn_is_reported() -> None:
    with pytest.raises(
        KernelUnavailable, match="flash-attn could not be imported: No module named 'flash_attn'"
    ):
        FlashAttnKernel()


def test_the_torch_kernel_has_the_expected_signature() -> None:
    """Without a GPU, calling the kernel fails, but only after its arguments have been accepted."""
    kernel = VarlenKernel()
    q, rows_of_block = torch.zeros(1, 2, 16), torch.zeros(kernel.block_size, 2, 16)
    cache = LayerCache(rows_of_block, rows_of_block, kernel.block_size)
    lens = torch.tensor([0, 1], dtype=torch.int32)
    rows = QueryRows(lens, lens[1:], lens, torch.zeros(1, 1, dtype=torch.int32), 1, 1)

    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        kernel.attend(q, cache, rows, None)


class ArgumentsOfAttention(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the arguments of torch's variable-length attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments: tuple[Any, ...] = ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.torch_attn._varlen_attn.default:
            self.arguments = args
        return func(*args, **(kwargs or {}))


def test_the_torch_kernel_does_not_split_contexts() -> None:
    kernel, meta = VarlenKernel(), torch.device("meta")
    q, stored = torch.zeros(2, 2, 16, device=meta), torch.zeros(8 * kernel.block_size, 2, 16, device=meta)
    cache = LayerCache(stored, stored, kernel.block_size)
    starts, contexts = (torch.zeros(num, dtype=torch.int32, device=meta) for num in (3, 2))
    tables = torch.zeros(2, 4, dtype=torch.int32, device=meta)

    with ArgumentsOfAttention() as collected:
        kernel.attend(q, cache, QueryRows(starts, contexts, starts, tables, 1, 1024), None)

    names = [each.name for each in torch.ops.torch_attn._varlen_attn.default._schema.arguments]
    assert dict(zip(names, collected.arguments, strict=False))["num_splits"] == 1


@pytest.mark.parametrize("has_splits", [True, False])
def test_flash_attn_does_not_split_contexts(monkeypatch: pytest.MonkeyPatch, has_splits: bool) -> None:
    passed: dict[str, Any] = {}

    def with_splits(q: Tensor, k: Tensor, v: Tensor, *, num_splits: int = 0, **options: Any) -> Tensor:
        passed.update(options, num_splits=num_splits)
        return q

    def without_splits(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        passed.update(options)
        return q

    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = with_splits if has_splits else without_splits  # type: ignore[attr-defined]
    package.flash_attn_with_kvcache = without_splits  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    q, lens = torch.zeros(2, 2, 16), torch.tensor([0, 2], dtype=torch.int32)

    FlashAttnKernel().attend(q, LayerCache(q, q, 1), QueryRows(lens, lens[1:], lens, lens[None], 2, 2), None)

    assert passed.get("num_splits") == (1 if has_splits else None)


def test_decodes_are_passed_in_a_separate_kernel_call() -> None:
    class RecordingKernel(ReferenceKernel):
        max_queries: list[int] = []

        def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
            self.max_queries.append(rows.max_query)
            return super().attend(q, cache, rows, window)

    cache = random_cache(1, 16)
    kernel = RecordingKernel()
    for rows in ([(1, 5), (1, 9), (4, 8)], [(1, 3)], [(7, 7)]):
        metadata = make_metadata(rows)
        qkv = random_qkv(len(metadata.slot_mapping), 1, 1, 16)
        attend(PagedBackend(kernel), metadata, cache, qkv)

    assert kernel.max_queries == [1, 4, 1, 7]
