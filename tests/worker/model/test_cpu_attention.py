"""Decoding over a paged cache in C++ gives what the reference gives."""

from __future__ import annotations

from pathlib import Path

import llava_worker
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention import PackedRows
from llava_worker.model.backends import choose_backend
from llava_worker.model.config import read_config
from llava_worker.model.cpu.native import native_kernels
from llava_worker.model.cpu_attention import CpuBackend
from llava_worker.model.int8_cache import Int8KVCache
from llava_worker.model.kv_cache import ExactKVCache
from llava_worker.model.precision import Precision
from llava_worker.model.sdpa import SdpaBackend

from tests.worker.model.paged_rows import attend, draw, filled, pack

CPU = torch.device("cpu")
TINY = Path(llava_worker.__file__).parent / "tiny"
KERNELS = native_kernels()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason="no kernels on this machine")


@needs_kernels
@pytest.mark.parametrize("kind", [ExactKVCache, Int8KVCache])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_it_agrees_with_the_reference(kind: type, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    kv_heads, per_kv, head_dim = (data.draw(st.sampled_from(n)) for n in ((1, 2, 3), (1, 2, 4), (16, 48, 24)))
    decodes = data.draw(st.lists(st.integers(1, 40), max_size=2))
    prompts = data.draw(st.lists(st.tuples(st.integers(2, 25), st.integers(0, 5)), max_size=1))
    drafted = data.draw(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 20)), max_size=1))
    several = [(new, new + before) for new, before in (*drafted, *prompts)]
    rows = pack([(1, n) for n in decodes] + several or [(1, 33)])
    heads = [kv_heads * per_kv, kv_heads, kv_heads]
    num_tokens, sizes = len(rows.slots), [n * head_dim for n in heads]
    # As the decoder makes them: parts of one tensor, whose rows lie apart.
    parts = draw(num_tokens, sum(sizes), dtype=dtype).split(sizes, dim=-1)
    qkv = [part.view(num_tokens, n, head_dim) for part, n in zip(parts, heads, strict=True)]
    window = data.draw(st.sampled_from([None, 1, 3, 17, 100]))
    cache = filled(kind, kv_heads, head_dim, dtype)

    assert KERNELS is not None
    ours = attend(CpuBackend(KERNELS), rows, cache, qkv, window)

    theirs = attend(SdpaBackend(), rows, cache, qkv, window)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@needs_kernels
@pytest.mark.parametrize("kind", [ExactKVCache, Int8KVCache])
def test_a_row_comes_out_the_same_to_the_bit_whoever_stands_beside_it(kind: type) -> None:
    torch.manual_seed(0)
    cache = filled(kind, 2, 32, torch.float32)
    contexts = [38, 1, 20, 7]
    rows = pack([(1, context) for context in contexts])
    q, k, v = draw(4, 4, 32, dtype=torch.float32), *(draw(4, 2, 32, dtype=torch.float32) for _ in range(2))
    assert KERNELS is not None
    backend = CpuBackend(KERNELS)

    together = attend(backend, rows, cache, [q, k, v], None)

    for row in range(4):
        one = slice(row, row + 1)
        alone = PackedRows((1,), rows.context_lens[one], 1, rows.block_tables[one], rows.slots[one])
        assert torch.equal(attend(backend, alone, cache, [q[one], k[one], v[one]], None), together[one])


@needs_kernels
@pytest.mark.parametrize("kind", [ExactKVCache, Int8KVCache])
def test_a_token_comes_out_the_same_to_the_bit_with_guesses_after_it_and_without(kind: type) -> None:
    """Whatever they are: the last of them is not a number here."""
    torch.manual_seed(0)
    cache = filled(kind, 2, 32, torch.float32)
    rows = pack([(4, 23)])
    q, k, v = draw(4, 4, 32, dtype=torch.float32), *(draw(4, 2, 32, dtype=torch.float32) for _ in range(2))
    k[3] = float("nan")
    assert KERNELS is not None
    backend = CpuBackend(KERNELS)
    alone = [
        attend(
            backend,
            PackedRows((1,), (20 + at,), 1, rows.block_tables, rows.slots[at : at + 1]),
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
    cache = filled(ExactKVCache, 2, 16, torch.float32)
    rows = pack([(1, 30), (1, 9)])
    q, k, v = (draw(2, 2, 16, dtype=torch.float32) for _ in range(3))
    k[0, 0, 0] = float("nan")

    assert KERNELS is not None
    out = attend(CpuBackend(KERNELS), rows, cache, [q, k, v], None)

    assert out[1].isfinite().all()
    assert out[0, 0].isnan().all() and out[0, 1].isfinite().all()  # the one head that saw it


@needs_kernels
def test_it_is_taken_where_its_kernels_are_and_only_there() -> None:
    assert KERNELS is not None
    text = read_config(TINY).text_config
    assert isinstance(choose_backend(Precision("bf16", torch.bfloat16, KERNELS), text, CPU), CpuBackend)
    assert isinstance(choose_backend(Precision("fp32", torch.float32), text, CPU), SdpaBackend)
