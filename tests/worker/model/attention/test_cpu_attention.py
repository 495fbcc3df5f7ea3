"""Attention over a paged cache in C++ gives what the reference gives."""

from __future__ import annotations

from pathlib import Path

import llava_worker
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.attention.cpu import CpuBackend
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import read_config
from llava_worker.model.cpu.native import native_kernels
from llava_worker.model.quantization.precision import Precision
from torch import Tensor

from tests.worker.model.paged_rows import LAYER, attend, draw, filled, pack

CPU = torch.device("cpu")
TINY = Path(llava_worker.__file__).parent / "tiny"
KERNELS = native_kernels()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason="no kernels on this machine")
needs_prompts = pytest.mark.skipif(
    KERNELS is None or not KERNELS.uses_prefill_attention(torch.bfloat16),
    reason="torch's prompts are faster here",
)


@needs_kernels
@pytest.mark.parametrize("is_int8", [False, True])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_it_agrees_with_the_reference(is_int8: bool, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    kv_heads, per_kv, head_dim = (data.draw(st.sampled_from(n)) for n in ((1, 2, 3), (1, 2, 4), (16, 48, 24)))
    decodes = data.draw(st.lists(st.integers(1, 40), max_size=2))
    prompts = data.draw(st.lists(st.tuples(st.integers(2, 25), st.integers(0, 5)), max_size=1))
    drafted = data.draw(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 20)), max_size=1))
    several = [(new, new + before) for new, before in (*drafted, *prompts)]
    rows = pack([(1, n) for n in decodes] + several or [(1, 33)])
    heads = [kv_heads * per_kv, kv_heads, kv_heads]
    num_tokens, sizes = len(rows.slot_mapping), [n * head_dim for n in heads]
    # As the decoder makes them: parts of one tensor, whose rows lie apart.
    parts = draw(num_tokens, sum(sizes), dtype=dtype).split(sizes, dim=-1)
    qkv = [part.view(num_tokens, n, head_dim) for part, n in zip(parts, heads, strict=True)]
    window = data.draw(st.sampled_from([None, 1, 3, 17, 100]))
    cache = filled(is_int8, kv_heads, head_dim, dtype)

    assert KERNELS is not None
    ours = attend(CpuBackend(KERNELS), rows, cache, qkv, window)

    theirs = attend(SdpaBackend(), rows, cache, qkv, window)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@needs_kernels
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_row_comes_out_the_same_to_the_bit_whoever_stands_beside_it(is_int8: bool) -> None:
    torch.manual_seed(0)
    cache = filled(is_int8, 2, 32, torch.float32)
    contexts = [38, 1, 20, 7]
    rows = pack([(1, context) for context in contexts])
    q, k, v = draw(4, 4, 32, dtype=torch.float32), *(draw(4, 2, 32, dtype=torch.float32) for _ in range(2))
    assert KERNELS is not None
    backend = CpuBackend(KERNELS)

    together = attend(backend, rows, cache, [q, k, v], None)

    for row in range(4):
        one = slice(row, row + 1)
        alone = AttentionMetadata(
            (1,), rows.context_lens[one], 1, rows.block_tables[one], rows.slot_mapping[one]
        )
        assert torch.equal(attend(backend, alone, cache, [q[one], k[one], v[one]], None), together[one])


@needs_kernels
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_token_comes_out_the_same_to_the_bit_with_guesses_after_it_and_without(is_int8: bool) -> None:
    """Whatever they are: the last of them is not a number here."""
    torch.manual_seed(0)
    cache = filled(is_int8, 2, 32, torch.float32)
    rows = pack([(4, 23)])
    q, k, v = draw(4, 4, 32, dtype=torch.float32), *(draw(4, 2, 32, dtype=torch.float32) for _ in range(2))
    k[3] = float("nan")
    assert KERNELS is not None
    backend = CpuBackend(KERNELS)
    alone = [
        attend(
            backend,
            AttentionMetadata((1,), (20 + at,), 1, rows.block_tables, rows.slot_mapping[at : at + 1]),
            cache,
            [part[at : at + 1] for part in (q, k, v)],
            None,
        )
        for at in range(3)
    ]

    together = attend(backend, rows, cache, [q, k, v], None)

    assert torch.equal(together[:3], torch.cat(alone))


@needs_kernels
def test_nothing_of_another_row_is_read_not_even_a_nan() -> None:
    torch.manual_seed(0)
    cache = filled(False, 2, 16, torch.float32)
    rows = pack([(1, 30), (1, 9)])
    q, k, v = (draw(2, 2, 16, dtype=torch.float32) for _ in range(3))
    k[0, 0, 0] = float("nan")

    assert KERNELS is not None
    out = attend(CpuBackend(KERNELS), rows, cache, [q, k, v], None)

    assert out[1].isfinite().all()
    assert out[0, 0].isnan().all() and out[0, 1].isfinite().all()  # the one head that saw it


LONG = 16  # tokens of a block: 640 in all


def long_prompt(
    num_new: int, context: int, is_int8: bool, *, heads: int = 4, kv_heads: int = 2, head_dim: int = 32
) -> tuple[AttentionMetadata, KVCache, list[Tensor]]:
    rows = pack([(num_new, context)], block_size=LONG)
    cache = filled(is_int8, kv_heads, head_dim, torch.bfloat16, block_size=LONG)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    parts = draw(num_new, sum(sizes), dtype=torch.bfloat16).split(sizes, dim=-1)
    return rows, cache, [part.view(num_new, -1, head_dim) for part in parts]


@needs_prompts
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("window", [None, 5, 130])
@pytest.mark.parametrize(
    ("num_new", "context"), [(17, 17), (33, 129), (128, 128), (128, 256), (129, 257), (300, 300), (20, 611)]
)
def test_long_prompts_in_bf16_agree_with_the_reference(
    is_int8: bool, num_new: int, context: int, window: int | None
) -> None:
    torch.manual_seed(num_new)
    for sizes in (
        {},
        {"heads": 3, "kv_heads": 3, "head_dim": 48},
        {"heads": 8, "kv_heads": 1, "head_dim": 16},
    ):
        rows, cache, qkv = long_prompt(num_new, context, is_int8, **sizes)
        assert KERNELS is not None
        ours = attend(CpuBackend(KERNELS), rows, cache, qkv, window)
        theirs = attend(SdpaBackend(), rows, cache, qkv, window)
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@needs_prompts
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_prompt_in_chunks_comes_out_as_in_one_piece_to_the_bit(is_int8: bool) -> None:
    torch.manual_seed(0)
    rows, cache, qkv = long_prompt(300, 300, is_int8)
    assert KERNELS is not None
    backend = CpuBackend(KERNELS)
    whole = attend(backend, rows, cache, qkv, None)

    for start, end in ((0, 135), (135, 170), (170, 300)):
        part = AttentionMetadata((end - start,), (end,), 0, rows.block_tables, rows.slot_mapping[start:end])
        assert torch.equal(attend(backend, part, cache, [x[start:end] for x in qkv], None), whole[start:end])


@needs_prompts
def test_a_prompt_reads_nothing_beyond_its_context() -> None:
    """Its last block has room for more, and that of another is next to it."""
    torch.manual_seed(0)
    rows, cache, qkv = long_prompt(150, 150, False)
    assert KERNELS is not None
    cache.layer(LAYER).keys.fill_(float("nan"))
    cache.layer(LAYER).values.fill_(float("nan"))

    assert attend(CpuBackend(KERNELS), rows, cache, qkv, None).isfinite().all()

    qkv[1][40] = float("nan")
    out = attend(CpuBackend(KERNELS), rows, cache, qkv, None)
    assert out[40:].isnan().all()


@needs_prompts
def test_numbers_of_any_size_leave_a_softmax() -> None:
    torch.manual_seed(0)
    rows, cache, qkv = long_prompt(200, 200, False)
    qkv[0].mul_(1e3)
    assert KERNELS is not None

    ours = attend(CpuBackend(KERNELS), rows, cache, qkv, None)

    torch.testing.assert_close(ours, attend(SdpaBackend(), rows, cache, qkv, None), rtol=5e-2, atol=5e-2)


@needs_kernels
def test_it_is_taken_where_its_kernels_are_and_only_there() -> None:
    assert KERNELS is not None
    text = read_config(TINY).text_config
    assert isinstance(choose_backend(Precision("bf16", torch.bfloat16, KERNELS), text, CPU), CpuBackend)
    assert isinstance(choose_backend(Precision("fp32", torch.float32), text, CPU), SdpaBackend)
