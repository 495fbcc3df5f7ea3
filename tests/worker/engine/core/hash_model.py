"""A model without tensors: what stands in a slot is a hash of everything before it, found by block tables.

A token is a hash of all slots that its sequence sees. So a block that is shared, copied, overwritten or freed
wrongly gives another token, and a slot that nobody wrote gives an error; a workload takes milliseconds.
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
from llava_worker.engine.core.in_flight_step import InFlightStep
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.step_result import ChunkResult, TokenResult
from llava_worker.engine.core.step_timer import StepTimer
from llava_worker.engine.sampling.sampled_tokens import count_accepted
from llava_worker.model.config.image_grid import PictureLayout

VOCABULARY = 128
_WORDS = 40  # so many different tokens are chosen, the end mark among them


class HashRunner:
    """Stands where a `ModelRunner` does."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        encoder_cache: EncoderCache,
        breaks_at: Mapping[str, int | None] = MappingProxyType({}),
    ) -> None:
        """``breaks_at``: at which token of its answer a sequence fails."""
        config = SimpleNamespace(
            text_config=SimpleNamespace(vocab_size=VOCABULARY),
            picture_layout=lambda: PictureLayout(side=28, tokens_per_tile=4),
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
        before = (
            {} if after is None else {each.chunk.sequence: each.tokens[0].token_id for each in after.read()}
        )
        computed = [self._compute(chunk, written, before.get(chunk.sequence)) for chunk in chunks]
        self._slots.update(written)  # only now: no row of a pass reads what another row of it writes
        results = [result for result in computed if result is not None]
        return InFlightStep(chunks, lambda: results, token_ids=torch.zeros(len(results)))

    def drop_features(self, sequence: Sequence) -> None:
        pass

    def _compute(self, chunk: Chunk, written: dict[int, int], ahead: int | None) -> ChunkResult | None:
        sequence, size = chunk.sequence, self.cache.block_size
        for image in sequence.images_within(chunk.start, chunk.end):
            self._look_at(sequence, image.content)
        names = names_of(sequence)
        if chunk.is_ahead:
            assert len(names) == chunk.start
            names.append(0 if ahead is None else ahead)
        slots = [block * size + row for block in sequence.block_table for row in range(size)]
        seen = [self._slots[slot] for slot in slots[: chunk.start]]
        for position, name in enumerate((*names[chunk.start : chunk.end], *chunk.drafts), chunk.start):
            seen.append(follow(seen, name, sequence.cache_scope))
            assert slots[position] not in written, "two rows of a pass write to one slot"
            written[slots[position]] = seen[-1]
        if not chunk.is_last:
            return None
        first = len(seen) - len(chunk.drafts)
        chosen = [choose(seen[:end], sequence.sampling.seed) for end in range(first, len(seen) + 1)]
        place = chunk.end - len(sequence.prompt_ids)
        told = [
            self._unless_broken(sequence, index, token_id) for index, token_id in enumerate(chosen, place)
        ]
        num_gained = count_accepted(chunk.drafts, told) + 1
        return ChunkResult(chunk, [TokenResult(token_id) for token_id in told[:num_gained]])

    def _unless_broken(self, sequence: Sequence, index: int, token_id: int) -> int | None:
        breaks_at = self._breaks_at.get(sequence.seq_id)
        return token_id if breaks_at is None or index < breaks_at else None

    def _look_at(self, sequence: Sequence, content: str) -> None:
        name = (sequence.cache_scope, content)
        if self.encoder_cache.get(name) is None:
            self.num_encoded_images += 1
            self.encoder_cache.put(name, torch.zeros(1))


def names_of(sequence: Sequence) -> list[int]:
    """What each token is: a word, or a place in a picture."""
    names = sequence.token_ids(0, sequence.num_tokens)
    for image in sequence.images:
        for position in range(image.start, image.end):
            names[position] = -1 - zlib.crc32(f"{image.content} {position - image.start}".encode())
    return names


def follow(seen: Items[int], name: int, scope: str) -> int:
    return hash((seen[-1] if seen else ord(scope), name))


def choose(seen: Items[int], seed: int) -> int:
    return 2 + hash((*seen, seed)) % _WORDS


def answer_of(sequence: Sequence, num_tokens: int) -> list[int]:
    """What the model says to the sequence alone, worked out without blocks."""
    seen: list[int] = []
    for name in names_of(sequence):
        seen.append(follow(seen, name, sequence.cache_scope))
    answer: list[int] = []
    while len(answer) < num_tokens:
        answer.append(choose(seen, sequence.sampling.seed))
        seen.append(follow(seen, answer[-1], sequence.cache_scope))
    return answer
