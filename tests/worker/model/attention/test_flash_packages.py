"""The calls of flash-attn and FlashAttention 3 are correct if the functions do what their docstrings say.

The packages need a GPU. Here, functions with the same parameters compute the documented results with torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from llava_worker.model.attention.flash import Flash3Kernel, FlashAttnKernel
from llava_worker.model.attention.paged import DecodeKernel, PagedBackend, PagedKernel, QueryRows
from llava_worker.model.attention.select import first_passing
from llava_worker.model.attention.self_test import self_test
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.gpu.decode_speed import decode_seconds
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.quantization.precision import choose_precision
from torch import Tensor

CPU = torch.device("cpu")
TEXT = TextConfig(
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    max_position_embeddings=600,
    sliding_window=70,
)


def varlen(
    q: Tensor,
    k_blocks: Tensor,
    v_blocks: Tensor,
    starts: Tensor,
    contexts: Tensor,
    tables: Tensor,
    window_size: tuple[int, int],
) -> Tensor:
    """Compute causal attention, aligned to the end of each context. q is [tokens, heads, head_dim]."""
    assert tables.dtype == contexts.dtype == starts.dtype == torch.int32
    assert window_size[1] == 0 and len(tables) == len(contexts) == len(starts) - 1
    outs = []
    for row, context in enumerate(contexts.tolist()):
        own = q[starts[row] : starts[row + 1]].float()
        group = q.shape[1] // k_blocks.shape[2]
        k, v = (
            blocks[tables[row].long()].flatten(0, 1)[:context].repeat_interleave(group, 1).float()
            for blocks in (k_blocks, v_blocks)
        )
        at, keys = torch.arange(context - len(own), context)[:, None], torch.arange(context)
        is_seen = (keys <= at) & ((keys >= at - window_size[0]) | (window_size[0] < 0))
        scores = torch.einsum("qhd,khd->hqk", own, k) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outs).to(q.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    block_table: Tensor | None = None,
) -> Tensor:
    assert causal and block_table is not None
    return varlen(q, k, v, cu_seqlens_q, cu_seqlens_k.diff(), block_table, window_size)


def kvcache_2(
    q: Tensor,  # [rows, tokens, heads, head_dim]
    k_cache: Tensor,
    v_cache: Tensor,
    k: None = None,
    v: None = None,
    cache_seqlens: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    num_splits: int = 0,
) -> Tensor:
    assert causal and block_table is not None and cache_seqlens is not None
    assert k_cache.shape[1] % 256 == 0
    starts = q.shape[1] * torch.arange(len(q) + 1, dtype=torch.int32)
    return varlen(q.flatten(0, 1), k_cache, v_cache, starts, cache_seqlens, block_table, window_size).view_as(
        q
    )


def kvcache_3(
    q: Tensor,  # [tokens, heads, head_dim], because cu_seqlens_q is set
    k_cache: Tensor,
    v_cache: Tensor,
    k: None = None,
    v: None = None,
    cache_seqlens: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    num_splits: int = 0,
) -> Tensor:
    assert causal and page_table is not None and cache_seqlens is not None and cu_seqlens_q is not None
    assert max_seqlen_q is not None and int(cu_seqlens_q.diff().max()) <= max_seqlen_q
    return varlen(q, k_cache, v_cache, cu_seqlens_q, cache_seqlens, page_table, window_size)


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    functions: dict[str, dict[str, Any]] = {
        "flash_attn": {
            "flash_attn_varlen_func": flash_attn_varlen_func,
            "flash_attn_with_kvcache": kvcache_2,
        },
        "flash_attn_interface": {"flash_attn_with_kvcache": kvcache_3},
    }
    for name, contents in functions.items():
        package = ModuleType(name)
        package.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, package)


@pytest.mark.parametrize("make", [FlashAttnKernel, Flash3Kernel])
def test_the_calls_pass_the_self_test(make: type[PagedKernel]) -> None:
    assert self_test(PagedBackend(make()), TEXT, torch.float32, CPU) is None


class SlowDecodeKernel(DecodeKernel):
    """Delegates to a paged kernel."""

    name = "slow"

    def rope_and_attend(
        self,
        qkv: Tensor,
        rotation: Rotation,
        cache: LayerCache,
        slots: Tensor,
        rows: QueryRows,
        window: int | None,
    ) -> Tensor:
        q = rotation.rope_and_cache(qkv, cache, slots)
        return self.attend(q, cache, rows, window)

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        return FlashAttnKernel().attend(q, cache, rows, window)


@pytest.mark.parametrize("fastest", ["flash-attn", "flash-attn with slow decoding"])
def test_the_fastest_of_the_combinations_that_pass_is_selected(fastest: str) -> None:
    measured: list[str] = []

    def measure(backend: PagedBackend) -> float:
        measured.append(backend.name)
        return 1.0 if backend.name == fastest else 2.0

    backend = first_passing(
        [FlashAttnKernel], [SlowDecodeKernel(), None], TEXT, torch.float32, CPU, measure=measure
    )

    assert backend.name == fastest
    assert measured == ["flash-attn with slow decoding", "flash-attn"]


def test_the_duration_of_decodes_is_measured_with_the_shape_of_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    precision = choose_precision("fp32", CPU)
    with caplog.at_level("INFO"):
        seconds = decode_seconds(PagedBackend(FlashAttnKernel()), text=TEXT, precision=precision, device=CPU)
    assert 0 < seconds < 60
    assert "attention: flash-attn decodes in" in caplog.text


class UncapturableKernel(FlashAttnKernel):
    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_kernel_that_cannot_be_captured_is_the_slowest() -> None:
    precision = choose_precision("fp32", CPU)
    backend = PagedBackend(UncapturableKernel())
    assert decode_seconds(backend, text=TEXT, precision=precision, device=CPU) == torch.inf
