"""The scheduler: what the next forward pass computes. Continuous batching under a token budget.

Each step, in this order:

0. a waiting sequence preempts running ones of lower priority if there is no other room for it;
1. every decoding sequence gets its one token: a running stream never waits for a long prompt;
2. prompts already begun continue, the highest priority first, in chunks of what is left of the budget;
3. waiting sequences are admitted, the highest priority first, while there are blocks for their whole prompt;
   those with a higher priority than any prompt already begun are admitted before 2.

Sequences of equal priority are served in the order of arrival. Tokens that a running sequence is about to
compute are not computed twice: a waiting sequence that could share them waits, and others overtake it.

If a decoding sequence finds no free block, the running sequence with the lowest priority is preempted: its
blocks are freed, it returns to its position in the waiting queue and is recomputed, prompt and output so far,
when there is room.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from llava_worker.engine.core.block_manager import BlockCopy, BlockManager
from llava_worker.engine.core.sequence import ImageSpan, Sequence

__all__ = ["Chunk", "Scheduler", "SchedulerOutput", "priority_key"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, end) of a sequence go through the model in this step.

    ``drafts`` are proposed tokens after the sequence's last; only a last chunk has any. A chunk that
    ``is_ahead`` is a single token that only the device knows yet: the step before samples it.
    """

    sequence: Sequence
    start: int
    end: int
    drafts: tuple[int, ...] = ()
    is_ahead: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model, drafts included."""
        return self.end - self.start + len(self.drafts)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; the others are output tokens and drafts."""
        return max(0, min(self.end, len(self.sequence.prompt_ids)) - self.start)

    @property
    def num_sampled(self) -> int:
        """Rows of logits: one after the sequence's last token and one after each draft."""
        return 1 + len(self.drafts) if self.is_last else 0

    @property
    def is_last(self) -> bool:
        """Whether the next token can be sampled after this chunk."""
        return self.is_ahead or self.end == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step: at most one chunk per sequence, and the block copies to make, in this order, before it."""

    chunks: list[Chunk]
    copies: list[BlockCopy]


class Scheduler:
    """Moves sequences from waiting to running and back.

    Invariant: a sequence is in either ``waiting`` or ``running``, both sorted by priority; only running ones
    have blocks. No sequence alone needs more blocks than there are: the engine rejects it before.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_sequences: int,
        max_batch_tokens: int,
        encoded: Container[tuple[str, str]] = (),
    ) -> None:
        """``encoded`` contains the `ImageKey` of images that need no encoding."""
        if max_batch_tokens < max_num_sequences:
            raise ValueError(
                f"max_batch_tokens is {max_batch_tokens}; it must be at least max_num_sequences "
                f"({max_num_sequences}), or not every stream gets its token each step"
            )
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_added = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # found in the prefix cache on admission, after a preemption too
        self._blocks = blocks
        self._max_num_sequences = max_num_sequences
        self._max_batch_tokens = max_batch_tokens
        self._encoded = encoded

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    def add(self, sequence: Sequence) -> None:
        self.num_added += 1
        sequence.arrival = self.num_added
        insort(self.waiting, sequence, key=priority_key)

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence that ended or was aborted and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._blocks.free(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> SchedulerOutput:
        """The next step. It has no chunks only if there are no sequences."""
        budget = _Budget(self._max_batch_tokens, self._max_batch_tokens)
        self._preempt_for_priority()
        output = SchedulerOutput(self._schedule_decodes(budget), [])
        begun = [sequence for sequence in self.running if sequence.num_uncomputed > 1]
        if begun:
            self._schedule_waiting(budget, output, above=begun[0].priority)
        output.chunks.extend(self._schedule_begun_prompts(begun, budget))
        self._schedule_waiting(budget, output)
        return output

    def schedule_ahead(self, sequences: list[Sequence]) -> list[Chunk]:
        """A decoding step for ``sequences``, all that will run then, each with the token sampled before it.

        Empty where the next step may be a different one: a waiting sequence may be admitted, or there are not
        enough blocks. A sequence that ends before the step frees the block allocated here.
        """
        if self.waiting and (len(sequences) < self._max_num_sequences or self._can_preempt_last()):
            return []
        if not all(self._blocks.append_slots(sequence, 1) for sequence in sequences):
            return []
        return [
            Chunk(sequence, sequence.num_tokens, sequence.num_tokens + 1, is_ahead=True)
            for sequence in sequences
        ]

    def _preempt_for_priority(self) -> None:
        """Make room for the first waiting sequence, before anything is scheduled for the preempted ones."""
        if not self.waiting or self._blocks.is_prefix_pending(self.waiting[0]):
            return
        first = self.waiting[0]
        while self._can_preempt_last() and not self._has_room(first):
            self._preempt_last()

    def _can_preempt_last(self) -> bool:
        """Whether the first waiting sequence has a higher priority than the last running one."""
        return bool(self.running) and self.running[-1].priority < self.waiting[0].priority

    def _has_room(self, sequence: Sequence) -> bool:
        num_running = len(self.running)
        return num_running < self._max_num_sequences and self._blocks.can_allocate(
            sequence, num_spare=num_running
        )

    def _schedule_decodes(self, budget: _Budget) -> list[Chunk]:
        chunks = []
        for sequence in self.running:  # a preemption removes from its end
            if sequence.num_uncomputed == 1 and self._append_slot(sequence):
                budget.num_tokens -= 1
                chunks.append(Chunk(sequence, sequence.num_computed, sequence.num_tokens))
        return chunks

    def _append_slot(self, sequence: Sequence) -> bool:
        """Make room for the newest token; False if the sequence itself was preempted."""
        while not self._blocks.append_slots(sequence):
            if self._preempt_last() is sequence:
                return False
        return True

    def _schedule_begun_prompts(self, begun: list[Sequence], budget: _Budget) -> list[Chunk]:
        chunks = (self._next_chunk(sequence, budget) for sequence in begun)
        return [chunk for chunk in chunks if chunk is not None]

    def _schedule_waiting(
        self, budget: _Budget, output: SchedulerOutput, *, above: int | None = None
    ) -> None:
        """Admit waiting sequences; with ``above`` only those with a higher priority."""
        for sequence in list(self.waiting):
            if budget.num_tokens == 0 or len(self.running) == self._max_num_sequences:
                break
            if above is not None and sequence.priority <= above:
                break
            if self._blocks.is_prefix_pending(sequence):
                continue
            # Each running sequence soon needs another block: using the last ones only to preempt again would
            # waste the work.
            copies = self._blocks.allocate(sequence, num_spare=len(self.running))
            if copies is None:
                break
            output.copies.extend(copies)
            self._start(sequence)
            chunk = self._next_chunk(sequence, budget)
            if chunk is None:  # its first image has to wait for the next step
                break
            output.chunks.append(chunk)

    def _start(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=priority_key)
        self.num_cached_tokens += sequence.num_computed
        if sequence.num_cached is None:
            sequence.num_cached = min(sequence.num_computed, len(sequence.prompt_ids))

    def _next_chunk(self, sequence: Sequence, budget: _Budget) -> Chunk | None:
        """As much of the sequence as the budget allows; None if that is nothing."""
        start = sequence.num_computed
        end = min(sequence.num_tokens, start + budget.num_tokens)
        for image in sequence.images_within(start, end):
            if not self._reserve_encoding(sequence, image, budget):
                end = max(start, image.start)
                break
        if end == start:
            return None
        budget.num_tokens -= end - start
        return Chunk(sequence, start, end)

    def _reserve_encoding(self, sequence: Sequence, image: ImageSpan, budget: _Budget) -> bool:
        """Take an image that was not encoded yet from the budget, once per step; False if it does not fit."""
        key = (sequence.cache_scope, image.content)
        if key in self._encoded or key in budget.images:
            return True
        if budget.images and image.length > budget.num_image_tokens:
            return False
        budget.num_image_tokens -= image.length
        budget.images.add(key)
        return True

    def _preempt_last(self) -> Sequence:
        sequence = self.running.pop()
        self._blocks.free(sequence)
        insort(self.waiting, sequence, key=priority_key)
        self.num_preemptions += 1
        return sequence


def priority_key(sequence: Sequence) -> tuple[int, int]:
    """Sorts the highest priority first."""
    return (-sequence.priority, sequence.arrival)


@dataclass(slots=True)
class _Budget:
    """Tokens that a step may still compute.

    Image tokens to encode have a budget of the same size of their own. An image larger than all of it is
    encoded as the first one of a step.
    """

    num_tokens: int
    num_image_tokens: int
    images: set[tuple[str, str]] = field(default_factory=set)
