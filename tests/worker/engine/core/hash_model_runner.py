"""A model runner without tensors.

Each KV cache slot contains a hash of its token and of all tokens before it. A sampled token is a hash of all
slots of the sequence, which are read through the block table. If a block is shared, copied, overwritten or
freed incorrectly, the output changes. Reading an unwritten slot is an error. A workload takes only
milliseconds.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from collections.abc import Sequence as Items
from types import MappingProxyType, SimpleNamespace

import torch
from llava_worker.engine import Sequence
from llava_worker.engine.core.block_manager import BlockCopy
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.model_runner_output import ChunkResult, TokenResult
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.step_timer import StepTimer
from llava_worker.engine.model_runner import InFlightStep
from llava_worker.engine.sampling.sampled_tokens import count_accepted
from llava_worker.model.config.image_grid import ImageLayout

VOCAB_SIZE = 128
_NUM_SAMPLED = 40  # number of tokens that can be sampled, including the end token


class HashModelRunner:
    """A drop-in replacement for `ModelRunner` that computes hashes."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        encoder_cache: EncoderCache,
        breaks_at: Mapping[str, int | None] = MappingProxyType({}),
    ) -> None:
        """``breaks_at`` maps sequence IDs to the output token at which the logits become NaN."""
        config = SimpleNamespace(
            text_config=SimpleNamespace(vocab_size=VOCAB_SIZE),
            image_layout=lambda: ImageLayout(side=28, tokens_per_tile=4),
        )
        self.model = SimpleNamespace(config=config)
        self.cache = SimpleNamespace(num_blocks=num_blocks, block_size=block_size)
        self.encoder_cache = encoder_cache
        self.num_encoded_images = 0
        self.timer = StepTimer()
        self._breaks_at = breaks_at
        self._slots: dict[int, int] = {}

    def copy_blocks(self, copies: Items[BlockCopy]) -> None:
        size = self.cache.block_size
        for copy in copies:
            for row in range(copy.num_rows):
                self._slots[copy.destination * size + row] = self._slots[copy.source * size + row]

    def launch(self, chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
        written: dict[int, int] = {}
        results_before = [] if after is None else after.read()
        before = {result.chunk.sequence: result.tokens[0].token_id for result in results_before}
        computed = [self._compute(chunk, written, before.get(chunk.sequence)) for chunk in chunks]
        self._slots.update(written)  # after all chunks: within a pass, rows do not see each other's writes
        results = [result for result in computed if result is not None]
        return InFlightStep(chunks, lambda: results, token_ids=torch.zeros(len(results)))

    def drop_features(self, sequence: Sequence) -> None:
        pass

    def _compute(self, chunk: Chunk, written: dict[int, int], ahead: int | None) -> ChunkResult | None:
        sequence, size = chunk.sequence, self.cache.block_size
        for image in sequence.images_within(chunk.start, chunk.end):
            self._encode(sequence, image.content)
        contents = contents_of(sequence)
        if chunk.is_ahead:
            assert len(contents) == chunk.start
            contents.append(0 if ahead is None else ahead)
        slots = [block * size + row for block in sequence.block_table for row in range(size)]
        seen = [self._slots[slot] for slot in slots[: chunk.start]]
        for position, content in enumerate((*contents[chunk.start : chunk.end], *chunk.drafts), chunk.start):
            seen.append(append_hash(seen, content, sequence.cache_scope))
            assert slots[position] not in written, "two rows in one pass write to the same slot"
            written[slots[position]] = seen[-1]
        if not chunk.is_last:
            return None
        first = len(seen) - len(chunk.drafts)
        sampled = [sample(seen[:end], sequence.sampling.seed) for end in range(first, len(seen) + 1)]
        position = chunk.end - len(sequence.prompt_ids)
        tokens = [
            self._unless_broken(sequence, index, token_id) for index, token_id in enumerate(sampled, position)
        ]
        num_tokens = count_accepted(chunk.drafts, tokens) + 1
        return ChunkResult(chunk, [TokenResult(token_id) for token_id in tokens[:num_tokens]])

    def _unless_broken(self, sequence: Sequence, index: int, token_id: int) -> int | None:
        breaks_at = self._breaks_at.get(sequence.seq_id)
        return token_id if breaks_at is None or index < breaks_at else None

    def _encode(self, sequence: Sequence, content: str) -> None:
        key = (sequence.cache_scope, content)
        if self.encoder_cache.get(key) is None:
            self.num_encoded_images += 1
            self.encoder_cache.put(key, torch.zeros(1))


def contents_of(sequence: Sequence) -> list[int]:
    """Return the content of each token: its ID or, for image tokens, a hash of the image and the position."""
    contents = sequence.token_ids(0, sequence.num_tokens)
    for image in sequence.images:
        for position in range(image.start, image.end):
            contents[position] = -1 - zlib.crc32(f"{image.content} {position - image.start}".encode())
    return contents


def append_hash(seen: Items[int], content: int, scope: str) -> int:
    return hash((seen[-1] if seen else ord(scope), content))


def sample(seen: Items[int], seed: int) -> int:
    return 2 + hash((*seen, seed)) % _NUM_SAMPLED


def expected_output(sequence: Sequence, num_tokens: int) -> list[int]:
    """Return the output that the sequence would have if it ran alone. The computation does not use blocks."""
    seen: list[int] = []
    for content in contents_of(sequence):
        seen.append(append_hash(seen, content, sequence.cache_scope))
    output_ids: list[int] = []
    while len(output_ids) < num_tokens:
        output_ids.append(sample(seen, sequence.sampling.seed))
        seen.append(append_hash(seen, output_ids[-1], sequence.cache_scope))
    return output_ids
