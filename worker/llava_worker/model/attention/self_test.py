"""The self-test of paged attention kernels, which decides whether a worker uses a kernel.

It is necessary because a package that was built for a different GPU or a different version of torch may
compute wrong results, and because kernels choose code paths by shape. For example, FlashAttention splits the
contexts of a batch if it has few rows and long contexts. In torch 2.13, its paged kernel then writes only the
outputs of the first row (pytorch issue 194167). The self-test therefore covers several numbers of rows and
long contexts, and memory that a kernel does not write contains NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_worker.model.attention.base import AttentionMetadata, DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import PagedBackend, PagedKernel, QueryRows
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan

__all__ = ["self_test"]

# Relative to the largest magnitude in the output of the same token.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_NUM_TOKENS = 8192  # context tokens in a batch, which limits the memory that the reference needs
_NUM_ROWS = (1, 2, 3, 16)
_QUERY_LENS = (1, 5)  # decodes, and rows with draft tokens


@torch.inference_mode()
def self_test(kernel: PagedKernel, text: TextConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Compare the kernel with the reference, with the head counts and the head size of the model.

    Returns a description of the first error, or None if there is none.
    """
    size = kernel.block_size
    batches = [_mixed_batch(size), *_long_batches(size, text.max_position_embeddings)]
    trial = _Trial(kernel, text, dtype, device, num_blocks=max(batch.num_blocks(size) for batch in batches))
    for window in {None if window is None else min(window, size) for window in text.sliding_windows}:
        for batch in batches:
            try:
                max_error = trial.max_error(batch, window)  # waits for the device, so it raises all errors
            except Exception as error:  # the caller logs it and uses another kernel
                return f"{type(error).__name__}: {error}"
            if not max_error <= _TOLERANCE[dtype]:
                return f"the maximum error is {max_error:.3g} {batch}"
    return None


@dataclass(frozen=True)
class _Batch:
    """Rows with ``query_lens`` new tokens. Decodes come first. No two rows share a block."""

    query_lens: tuple[int, ...]
    contexts: tuple[int, ...]

    def __str__(self) -> str:
        return f"for rows with {self.query_lens} new tokens in contexts of {self.contexts} tokens"

    def num_blocks(self, block_size: int) -> int:
        return sum(-(-context // block_size) for context in self.contexts)

    def metadata(self, block_size: int, device: torch.device) -> AttentionMetadata:
        """Return the metadata. Blocks are assigned in descending order, so that a kernel needs the table."""
        widths = [-(-context // block_size) for context in self.contexts]
        blocks = iter(range(sum(widths) - 1, -1, -1))
        tables = [[next(blocks) for _ in range(width)] for width in widths]
        slots = [
            table[position // block_size] * block_size + position % block_size
            for table, context, new in zip(tables, self.contexts, self.query_lens, strict=True)
            for position in range(context - new, context)
        ]
        padded = [table + [0] * (max(widths) - len(table)) for table in tables]
        return AttentionMetadata(
            query_lens=self.query_lens,
            context_lens=self.contexts,
            num_decodes=sum(new == 1 for new in self.query_lens),
            block_tables=torch.tensor(padded, device=device),
            slot_mapping=torch.tensor(slots, device=device),
        )


def _mixed_batch(size: int) -> _Batch:
    """Return two decodes, a whole prompt and the last chunk of a prompt."""
    return _Batch((1, 1, size - 1, size // 2), (3, size + 2, size - 1, 2 * size + 2))


def _long_batches(size: int, max_context: int) -> Iterator[_Batch]:
    """Yield batches of one kind of row each, with contexts of different lengths."""
    for num_rows in _NUM_ROWS:
        longest = min(max_context, max(size, _NUM_TOKENS // num_rows))
        contexts = tuple(max(max(_QUERY_LENS), longest - 37 * row) for row in range(num_rows))
        for query_len in _QUERY_LENS:
            yield _Batch((query_len,) * num_rows, contexts)


class _Trial:
    """Runs batches with the kernel and with the reference, on a KV cache with random contents."""

    def __init__(
        self, kernel: PagedKernel, text: TextConfig, dtype: torch.dtype, device: torch.device, num_blocks: int
    ) -> None:
        self._heads, self._kv_heads = text.num_attention_heads, text.num_key_value_heads
        self._head_dim = text.head_dim
        self._dtype, self._device = dtype, device
        self._noise = torch.Generator(device).manual_seed(0)
        self._backend = PagedBackend(_NanFilled(kernel))
        size = kernel.block_size
        self._cache = KVCache(KVCacheSpec(num_blocks, size, 1, self._kv_heads, self._head_dim, dtype), device)
        slots = torch.arange(num_blocks * size, device=device)
        self._cache.write(0, slots, *(self._draw(len(slots), self._kv_heads) for _ in range(2)))

    def max_error(self, batch: _Batch, window: int | None) -> float:
        """Return the largest relative error in the output of any token. It is NaN if an output is NaN."""
        metadata = batch.metadata(self._cache.block_size, self._device)
        num_tokens = len(metadata.slot_mapping)
        q = self._draw(num_tokens, self._heads)
        k, v = (self._draw(num_tokens, self._kv_heads) for _ in range(2))
        plans = [self._backend.plan(metadata, self._cache)]
        if metadata.num_decodes == len(metadata.query_lens):
            contexts = torch.tensor(metadata.context_lens, dtype=torch.int32, device=self._device)
            decodes = DecodeMetadata(metadata.slot_mapping, contexts, metadata.block_tables.int())
            plan = self._backend.decode_plan(decodes, self._cache)
            plans += [] if plan is None else [plan]
        expected = SdpaBackend().plan(metadata, self._cache).attend(0, q, k, v, window=window).float()
        scale = expected.abs().amax((1, 2), keepdim=True)
        errors = [
            ((plan.attend(0, q, k, v, window=window).float() - expected).abs() / scale).max()
            for plan in plans
        ]
        return float(torch.stack(errors).max())

    def _draw(self, num_tokens: int, num_heads: int) -> Tensor:
        shape = (num_tokens, num_heads, self._head_dim)
        return torch.randn(shape, generator=self._noise, device=self._device).to(self._dtype)


class _NanFilled(PagedKernel):
    """A kernel whose outputs and temporary buffers contain NaN until it writes to them.

    Without this, a row that the kernel does not write may contain the correct result of an earlier call.
    """

    def __init__(self, kernel: PagedKernel) -> None:
        self.name, self.block_size = kernel.name, kernel.block_size
        self._kernel = kernel

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, rows: QueryRows, window: int | None) -> Tensor:
        with uninitialized_memory_is_nan():
            return self._kernel.attend(q, keys, values, rows, window)
