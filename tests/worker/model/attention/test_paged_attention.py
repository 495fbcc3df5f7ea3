"""What a kernel over a paged cache promises: the reference's answers, or else it is left.

Without a GPU the kernel in Triton runs in Triton's interpreter, which multiplies no bf16; FlashAttention's
have none, and are asked on a GPU only (tests/gpu).
"""

from __future__ import annotations

import logging
from pathlib import Path

import llava_worker
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.attention.base import AttentionMetadata, DecodeMetadata
from llava_worker.model.attention.flash import FlashAttnKernel, KernelUnavailable, VarlenKernel
from llava_worker.model.attention.paged import PagedBackend, PagedKernel, QueryRows
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.select import first_passing
from llava_worker.model.attention.triton import TritonKernel
from llava_worker.model.config.model_config import read_config
from torch import Tensor

from tests.worker.model.definition import DefinitionKernel
from tests.worker.model.paged_rows import BLOCK, BLOCKS, LAYER, attend, draw, filled, pack

CPU = torch.device("cpu")
TEXT = read_config(Path(llava_worker.__file__).parent / "tiny").text_config

needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU compiles the kernel: tests/gpu asks it there"
)


@pytest.fixture(scope="module")
def triton_kernel() -> TritonKernel:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    return TritonKernel()


class ForgetfulKernel(DefinitionKernel):
    """Right but for the last token of each context."""

    name = "forgetful"

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, rows: QueryRows, window: int | None) -> Tensor:
        out = super().attend(q, keys, values, rows, window)
        out[int(rows.starts[-1]) - 1] *= 1.5
        return out


class RefusingKernel(DefinitionKernel):
    name = "refusing"

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, rows: QueryRows, window: int | None) -> Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")


def absent() -> PagedKernel:
    raise KernelUnavailable("it was never built")


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


def agrees_with_the_reference(kernel: PagedKernel, batch: dict) -> None:
    torch.manual_seed(batch["seed"])
    dtype, kv_heads, head_dim = batch["dtype"], batch["kv_heads"], batch["head_dim"]
    several = [(new, new + before) for new, before in batch["prompts"]]
    rows = pack([(1, n) for n in batch["decodes"]] + several or [(1, 33)])
    heads = [kv_heads * batch["group"], kv_heads, kv_heads]
    sizes = [n * head_dim for n in heads]
    # As the decoder makes them: parts of one tensor, whose rows lie apart.
    parts = draw(len(rows.slot_mapping), sum(sizes), dtype=dtype).split(sizes, dim=-1)
    qkv = [part.view(len(rows.slot_mapping), n, head_dim) for part, n in zip(parts, heads, strict=True)]
    cache = filled(False, kv_heads, head_dim, dtype)

    ours = attend(PagedBackend(kernel), rows, cache, qkv, batch["window"])

    theirs = attend(SdpaBackend(), rows, cache, qkv, batch["window"])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(batch=batches)
def test_the_rows_that_a_kernel_is_given_are_those_of_the_batch(batch: dict) -> None:
    agrees_with_the_reference(DefinitionKernel(), batch)


@needs_interpreter
@settings(max_examples=40, deadline=None)
@given(batch=batches)
def test_the_kernel_in_triton_agrees_with_the_reference(triton_kernel: TritonKernel, batch: dict) -> None:
    agrees_with_the_reference(triton_kernel, batch)


@needs_interpreter
def test_the_kernel_in_triton_reads_nothing_of_another_row_not_even_a_nan(
    triton_kernel: TritonKernel,
) -> None:
    torch.manual_seed(0)
    cache = filled(False, 2, 16, torch.float32)
    rows = pack([(1, 30), (1, 9), (6, 21)])
    q, k, v = (draw(8, 2, 16, dtype=torch.float32) for _ in range(3))
    unseen = torch.ones(BLOCKS * BLOCK, dtype=torch.bool)
    for table, context in zip(rows.block_tables, rows.context_lens, strict=True):
        places = torch.arange(context)
        unseen[table[places // BLOCK] * BLOCK + places % BLOCK] = False
    spoilt = unseen.nonzero()[:, 0]
    nothing = torch.full((len(spoilt), 2, 16), torch.nan)
    cache.write(LAYER, spoilt, nothing, nothing)
    k[0, 0, 0] = torch.nan

    out = attend(PagedBackend(triton_kernel), rows, cache, [q, k, v], None)

    assert out[1:].isfinite().all()
    assert out[0, 0].isnan().all() and out[0, 1].isfinite().all()  # the one head that saw it


@needs_interpreter
def test_decodes_told_by_tensors_alone_are_the_same_and_follow_the_tensors(
    triton_kernel: TritonKernel,
) -> None:
    """The plan is made once; then the tensors say other rows, as they do when a recorded step runs again."""
    torch.manual_seed(0)
    backend = PagedBackend(triton_kernel)
    cache = filled(False, 2, 16, torch.float32)
    one, other = (pack([(1, n) for n in contexts]) for contexts in ([30, 9, 1], [3, 17, 26]))
    told = DecodeMetadata(
        slot_mapping=one.slot_mapping.clone(),
        context_lens=torch.tensor(one.context_lens, dtype=torch.int32),
        block_tables=torch.zeros(3, 10, dtype=torch.int32),
    )
    plan = backend.decode_plan(told, cache)
    assert plan is not None
    for rows in (one, other):
        told.slot_mapping.copy_(rows.slot_mapping)
        told.context_lens.copy_(torch.tensor(rows.context_lens))
        told.block_tables[:, : rows.block_tables.shape[1]] = rows.block_tables
        q, k, v = (draw(3, 2, 16, dtype=torch.float32) for _ in range(3))

        ours = plan.attend(LAYER, q, k, v)

        torch.testing.assert_close(ours, attend(SdpaBackend(), rows, cache, [q, k, v], None))


def test_a_cache_that_the_kernels_cannot_read_is_served_by_the_reference() -> None:
    torch.manual_seed(0)
    cache = filled(True, 2, 16, torch.float32)
    rows = pack([(1, 30), (5, 9)])
    qkv = [draw(6, 2, 16, dtype=torch.float32) for _ in range(3)]

    ours = attend(PagedBackend(RefusingKernel()), rows, cache, qkv, None)

    assert torch.equal(ours, attend(SdpaBackend(), rows, cache, qkv, None))
    decodes = DecodeMetadata(rows.slot_mapping, torch.ones(6, dtype=torch.int32), rows.block_tables.int())
    assert PagedBackend(RefusingKernel()).decode_plan(decodes, cache) is None


def test_the_first_kernel_that_is_right_serves_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    candidates = iter([absent, RefusingKernel, ForgetfulKernel, DefinitionKernel])

    with caplog.at_level(logging.INFO):
        backend = first_passing(candidates, TEXT, torch.float32, CPU)

    assert backend.name == "definition"
    assert "refusing is there but of no use: RuntimeError: no kernel image" in caplog.text
    assert "forgetful is there but of no use: its answer is" in caplog.text
    assert "attention: definition; it was never built; refusing failed its trial" in caplog.text


def test_where_no_kernel_is_right_the_reference_serves_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = first_passing(iter([absent, ForgetfulKernel]), TEXT, torch.float32, CPU)

    assert isinstance(backend, SdpaBackend)
    assert "attention: sdpa, which gathers what it reads and is slow; it was never built" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
def test_flash_attention_that_is_not_installed_is_told_as_such() -> None:
    with pytest.raises(
        KernelUnavailable, match="flash-attn cannot be imported: No module named 'flash_attn'"
    ):
        FlashAttnKernel()


def test_the_kernel_inside_this_torch_takes_what_it_is_given() -> None:
    """Its signature, that is: it runs on GPUs only, and says so."""
    kernel = VarlenKernel()
    q, pages = torch.zeros(1, 2, 16), torch.zeros(1, kernel.block_size, 2, 16)
    lens = torch.tensor([0, 1], dtype=torch.int32)
    rows = QueryRows(lens, lens[1:], lens, torch.zeros(1, 1, dtype=torch.int32), 1, 1)

    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        kernel.attend(q, pages, pages, rows, None)


def test_rows_with_one_token_go_to_a_kernel_by_themselves() -> None:
    class Watched(DefinitionKernel):
        seen: list[int] = []

        def attend(
            self, q: Tensor, keys: Tensor, values: Tensor, rows: QueryRows, window: int | None
        ) -> Tensor:
            self.seen.append(rows.max_query)
            return super().attend(q, keys, values, rows, window)

    cache = filled(False, 1, 16, torch.float32)
    kernel = Watched()
    for rows in ([(1, 5), (1, 9), (4, 8)], [(1, 3)], [(7, 7)]):
        packed: AttentionMetadata = pack(rows)
        qkv = [draw(len(packed.slot_mapping), 1, 16, dtype=torch.float32) for _ in range(3)]
        attend(PagedBackend(kernel), packed, cache, qkv, None)

    assert kernel.seen == [1, 4, 1, 7]
