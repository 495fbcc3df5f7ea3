"""Sequences for tests of the block manager, and the operations that the engine performs on sequences."""

from __future__ import annotations

from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.core.block_manager import BlockManager


def sequence_of(token_ids: list[int], *, name: str = "one", scope: str = "", digest: str = "") -> Sequence:
    images = [ImageSpan(2, 3, digest)] if digest else []
    return Sequence(seq_id=name, prompt_ids=token_ids, max_new_tokens=9, images=images, cache_scope=scope)


def compute(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.num_computed = sequence.num_tokens
    blocks.cache_full_blocks(sequence)


def cache_prompt(blocks: BlockManager, *token_ids: int) -> None:
    """Compute a prompt and free its blocks, so that the prompt is cached."""
    sequence = sequence_of(list(token_ids))
    assert blocks.allocate(sequence) is not None
    compute(blocks, sequence)
    blocks.free(sequence)
