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

from llava_worker.model.attention.base import AttentionMetadata, AttentionPlan
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.paged_batches import paged_metadata, single_token_rows
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan

__all__ = ["self_test"]

# Relative to the largest magnitude in the output of the same token.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_NUM_TOKENS = 8192  # context tokens in a batch, which limits the memory that the reference needs
_NUM_ROWS = (1, 2, 3, 16)
_QUERY_LENS = (1, 5)  # decodes, and rows with draft tokens


@torch.inference_mode()
def self_test(
    backend: PagedBackend,
    text: TextConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    is_int8: bool = False,
) -> str | None:
    """Compare the backend with the reference, with the head counts and the head size of the model.

    ``is_int8`` tests an int8 KV cache. Returns a description of the first wrong result, or None if there is
    none. Exceptions are those of the kernels.
    """
    size = backend.block_size
    batches = [_mixed_batch(size), *_long_batches(size, text.max_position_embeddings)]
    num_blocks = max(batch.num_blocks(size) for batch in batches)
    spec = KVCacheSpec(num_blocks, size, 1, text.num_key_value_heads, text.head_dim, dtype, is_int8)
    trial = _Trial(backend, text.num_attention_heads, spec, device)
    for window in {None if window is None else min(window, size) for window in text.sliding_windows}:
        for batch in batches:
            max_error = trial.max_error(batch, window)  # waits for the device, so it raises all errors
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
        rows = list(zip(self.query_lens, self.contexts, strict=True))
        blocks = range(self.num_blocks(block_size) - 1, -1, -1)
        return paged_metadata(rows, blocks, block_size=block_size, device=device)


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
    """Runs batches with the backend and with the reference, on KV caches with the same random contents."""

    def __init__(
        self, backend: PagedBackend, num_heads: int, spec: KVCacheSpec, device: torch.device
    ) -> None:
        self._backend = backend
        self._heads = num_heads
        self._spec, self._device = spec, device
        self._noise = torch.Generator(device).manual_seed(0)
        self._cache, self._reference = KVCache(spec, device), KVCache(spec, device)
        slots = torch.arange(spec.num_tokens, device=device)
        k, v = (self._draw(len(slots), spec.num_kv_heads, spec.head_dim) for _ in range(2))
        for cache in (self._cache, self._reference):
            cache.write(0, slots, k, v)

    def max_error(self, batch: _Batch, window: int | None) -> float:
        """Return the largest relative error of any output, key or value. It is NaN if one of them is NaN."""
        metadata = batch.metadata(self._spec.block_size, self._device)
        num_tokens, kv_heads, head_dim = (
            len(metadata.slot_mapping),
            self._spec.num_kv_heads,
            self._spec.head_dim,
        )
        qkv = self._draw(num_tokens, self._heads + 2 * kv_heads, head_dim)
        angles = self._draw(num_tokens, 1, head_dim // 2)
        rotation = Rotation(angles.cos(), angles.sin(), TorchKernels())

        def attend(plan: AttentionPlan) -> Tensor:
            return plan.rope_and_attend(0, qkv, rotation, kv_heads=kv_heads, window=window)

        expected = [
            attend(SdpaBackend().plan(metadata, self._reference)),
            *self._reference.gather(0, metadata.slot_mapping),
        ]
        errors = []
        for plan in self._plans(metadata):
            with uninitialized_memory_is_nan():
                out = attend(plan)
            actual = [out, *self._cache.gather(0, metadata.slot_mapping)]
            errors += [_max_error(*pair) for pair in zip(actual, expected, strict=True)]
        return float(torch.stack(errors).max())  # unlike Python's max, this propagates NaN

    def _plans(self, metadata: AttentionMetadata) -> Iterator[AttentionPlan]:
        """Yield the plan for the batch, and those for CUDA graphs, if the backend supports them."""
        yield self._backend.plan(metadata, self._cache)
        rows, only_decodes = single_token_rows(metadata), metadata.num_decodes == len(metadata.query_lens)
        for is_mixed in (False, True) if only_decodes else (True,):
            plan = self._backend.decode_plan(rows, self._cache, is_mixed=is_mixed)
            if plan is not None:
                yield plan

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._noise, device=self._device).to(self._spec.dtype)


def _max_error(actual: Tensor, expected: Tensor) -> Tensor:
    """Return the largest error relative to the largest magnitude of the same token. Both [tokens, ...]."""
    expected = expected.float()
    return ((actual.float() - expected).abs() / expected.abs().amax((1, 2), keepdim=True)).max()
