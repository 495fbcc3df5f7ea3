"""The scheduler: selects the tokens to compute in each step (continuous batching with a token budget).

Each step is scheduled in the following stages:

0. If the first waiting sequence does not fit, running sequences of lower priority are preempted.
1. Every decoding sequence gets one token, so that no stream is blocked by a long prompt. `TokenGap` limits
   the remaining budget, so that the step does not take too long.
2. Partially computed prompts continue in chunks that fit in the remaining budget (chunked prefill), highest
   priority first.
3. Waiting sequences are admitted, highest priority first, as long as there are enough free blocks for the
   whole prompt. Sequences with a higher priority than all partially computed prompts are admitted before
   stage 2.

A new image is encoded in the step that computes its first token, together with all other new images of the
step. Encoding an image uses the budget like prompt tokens that take equally long. If the budget of a step is
too small for an image, the image is encoded in a step without other prompt tokens before it, or after it has
been deferred for several steps. A step therefore exceeds its budget by at most one image.

Sequences of equal priority are served in arrival order. If a waiting sequence can share tokens that are about
to be computed for a running sequence, the waiting sequence is skipped until these tokens have been computed.

If there is no free block for a decoding sequence, the running sequence with the lowest priority is preempted.
Its blocks are freed, and it returns to its position in the waiting queue. When there are enough free blocks
again, its prompt and previous output are recomputed.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import msgspec

from llava_worker.engine.core.block_manager import BlockCopy, BlockManager
from llava_worker.engine.core.sequence import ImageSpan, Sequence
from llava_worker.engine.core.token_gap import TokenGap

__all__ = ["Chunk", "Scheduler", "SchedulerOutput", "priority_key"]


# After a prompt has been completed before prompts of lower priority, more such requests are expected for this
# number of steps.
_NUM_OVERTAKEN_STEPS = 50
_MAX_DEFERRED = 8  # number of steps


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """The tokens [start, end) of a sequence that are computed in this step.

    ``drafts`` are draft tokens that follow the last token of the sequence. If the chunk does not contain that
    token, there are no drafts. If ``is_ahead`` is true, the chunk consists of the token sampled in the
    previous step, and the host does not know its ID yet.
    """

    sequence: Sequence
    start: int
    end: int
    drafts: tuple[int, ...] = ()
    is_ahead: bool = False

    @property
    def num_tokens(self) -> int:
        """The number of computed tokens, including drafts."""
        return self.end - self.start + len(self.drafts)

    @property
    def num_prompt_tokens(self) -> int:
        """The number of prompt tokens in the chunk. Its other tokens are output tokens or drafts."""
        num_left = len(self.sequence.prompt_ids) - self.start
        return min(self.end - self.start, num_left) if num_left > 0 else 0

    @property
    def num_sampled(self) -> int:
        """The number of rows of logits: one after the sequence's last token and one after each draft."""
        return 1 + len(self.drafts) if self.is_last else 0

    @property
    def is_last(self) -> bool:
        """Whether a new token is sampled after this chunk."""
        return self.is_ahead or self.end == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """The schedule of one step: at most one chunk per sequence, and the block copies to perform first."""

    chunks: list[Chunk]
    copies: list[BlockCopy]


def require_batch_tokens(max_batch_tokens: int, max_num_sequences: int) -> None:
    """Raise ValueError if a step is too small for one token of every running sequence."""
    if max_batch_tokens < max_num_sequences:
        raise ValueError(
            f"max_num_sequences is {max_num_sequences}, but a step has at most {max_batch_tokens} tokens. "
            f"Every running sequence needs one. Set max_num_sequences to at most {max_batch_tokens}, or set "
            f"max_batch_tokens to at least {max_num_sequences}."
        )


class Scheduler:
    """Moves sequences between the waiting queue and the running batch.

    Invariant: a sequence is in either ``waiting`` or ``running``, and only running sequences have blocks.
    Both lists are sorted by priority. The engine rejects sequences that would need more blocks than the KV
    cache has.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_sequences: int,
        max_batch_tokens: int,
        encoded: Container[tuple[str, str]] = (),
        encoder_cost: float = 0.0,
        max_token_gap_s: float = math.inf,
    ) -> None:
        """Create a scheduler.

        ``encoded`` contains the `ImageKey` of each image that has already been encoded. ``encoder_cost`` is
        the cost of encoding an image per feature vector, relative to the cost of computing a prompt token.
        ``max_token_gap_s`` is the maximum duration of a step with prompts while other sequences are decoding.
        """
        require_batch_tokens(max_batch_tokens, max_num_sequences)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_added = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # found in the prefix cache when a sequence was admitted or readmitted
        self._blocks = blocks
        self._max_num_sequences = max_num_sequences
        self._max_batch_tokens = max_batch_tokens
        self._encoded = encoded
        self._encoder_cost = encoder_cost
        self._token_gap = TokenGap(max_token_gap_s)
        self._num_overtaken_steps = 0  # whose prompts use a smaller budget
        self._prompt_cost = 0  # of the step that was scheduled last

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
        """Remove a sequence that has finished or was aborted, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._blocks.free(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> SchedulerOutput:
        """Schedule the next step. The schedule is empty only if there are no sequences."""
        self._preempt_for_priority()
        output = SchedulerOutput(self._schedule_decodes(), [])
        num_left = self._max_batch_tokens - len(output.chunks)
        self._num_overtaken_steps -= self._num_overtaken_steps > 0
        num_tokens = self._token_gap.max_prompt_cost(
            num_left, has_streams=bool(output.chunks), is_overtaken=self._num_overtaken_steps > 0
        )
        budget = _Budget(num_tokens, num_features=self._max_batch_tokens)
        begun = [sequence for sequence in self.running if sequence.num_uncomputed > 1]
        if begun:
            self._schedule_waiting(budget, output, above=begun[0].priority)
        output.chunks.extend(self._schedule_begun_prompts(begun, budget))
        self._schedule_waiting(budget, output)
        self._prompt_cost = budget.num_used
        return output

    def record_duration(self, seconds: float, *, is_ahead: bool) -> None:
        """Record the duration of the step from ``schedule`` or, if ``is_ahead``, ``schedule_ahead``."""
        self._token_gap.observe(prompt_cost=0 if is_ahead else self._prompt_cost, seconds=seconds)

    def schedule_ahead(self, sequences: list[Sequence]) -> list[Chunk]:
        """Schedule a decode step before the tokens of the current step have been read.

        ``sequences`` contains all sequences that will be running in this step. Returns an empty list if the
        step cannot be scheduled yet, because a waiting sequence might be admitted or because there are not
        enough free blocks. If a sequence finishes before the step runs, any block allocated to it here is
        freed.
        """
        if self.waiting and (len(sequences) < self._max_num_sequences or self._can_preempt_last()):
            return []
        for sequence in sequences:
            if not self._blocks.append_slots(sequence, 1):
                return []
        lengths = [sequence.num_tokens for sequence in sequences]
        return [
            Chunk(sequence, length, length + 1, (), True)
            for sequence, length in zip(sequences, lengths, strict=True)
        ]

    def _preempt_for_priority(self) -> None:
        """Preempt running sequences to make room for the first waiting one if its priority is higher."""
        if not self.waiting or self._blocks.is_prefix_pending(self.waiting[0]):
            return
        first = self.waiting[0]
        while self._can_preempt_last() and not self._has_room(first):
            self._preempt_last()

    def _can_preempt_last(self) -> bool:
        """Return whether the first waiting sequence has a higher priority than the last running one."""
        return bool(self.running) and self.running[-1].priority < self.waiting[0].priority

    def _has_room(self, sequence: Sequence) -> bool:
        num_running = len(self.running)
        return num_running < self._max_num_sequences and self._blocks.can_allocate(
            sequence, num_spare=num_running
        )

    def _schedule_decodes(self) -> list[Chunk]:
        return [
            Chunk(sequence, sequence.num_computed, sequence.num_tokens)
            for sequence in self.running  # preemption removes sequences from the end of this list
            if sequence.num_uncomputed == 1 and self._append_slot(sequence)
        ]

    def _append_slot(self, sequence: Sequence) -> bool:
        """Allocate a slot for the newest token, preempting sequences if necessary.

        Return False if this sequence was itself preempted.
        """
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
        """Admit waiting sequences. If ``above`` is set, admit only sequences with a priority above it."""
        for sequence in list(self.waiting):
            if budget.num_tokens == 0 or len(self.running) == self._max_num_sequences:
                break
            if above is not None and sequence.priority <= above:
                break
            if self._blocks.is_prefix_pending(sequence):
                continue
            # Leave a spare block for each running sequence. If the last free blocks were used, a running
            # sequence would soon have to be preempted, which would waste the tokens computed for it.
            copies = self._blocks.allocate(sequence, num_spare=len(self.running))
            if copies is None:
                break
            output.copies.extend(copies)
            self._start(sequence)
            chunk = self._next_chunk(sequence, budget)
            if chunk is None:  # the next image exceeds the remaining encoder budget
                break
            output.chunks.append(chunk)

    def _start(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=priority_key)
        self.num_cached_tokens += sequence.num_computed
        if sequence.num_cached is None:
            sequence.num_cached = min(sequence.num_computed, len(sequence.prompt_ids))

    def _next_chunk(self, sequence: Sequence, budget: _Budget) -> Chunk | None:
        """Return the largest chunk of the sequence that fits in the budget, or None if no token fits."""
        if sequence.priority < budget.first_token_priority:
            self._num_overtaken_steps = _NUM_OVERTAKEN_STEPS
            budget.num_tokens = self._token_gap.extra_prompt_cost(budget.num_tokens)
            budget.first_token_priority = sequence.priority
        start = sequence.num_computed
        end = min(sequence.num_tokens, start + budget.num_tokens)
        for image in sequence.images_within(start, end):
            if image.start >= end:  # encoding the previous image has used the budget
                break
            num_before = max(0, image.start - start)
            if not self._reserve_encoding(sequence, image, budget, num_before):
                end = start + num_before
                break
            end = min(end, start + budget.num_tokens)
        if end == start:
            return None
        budget.use(end - start)
        budget.has_prompts = True
        chunk = Chunk(sequence, start, end)
        if chunk.is_last:
            budget.first_token_priority = sequence.priority
        return chunk

    def _reserve_encoding(
        self, sequence: Sequence, image: ImageSpan, budget: _Budget, num_before: int
    ) -> bool:
        """Reserve budget for encoding an image, at most once per step. Return False if it does not fit.

        ``num_before`` tokens are computed before the image in the same chunk. Images that have already been
        encoded use no budget.
        """
        key = (sequence.cache_scope, image.content)
        if key in self._encoded or key in budget.images:
            return True
        if budget.images and image.num_encoded > budget.num_features:
            return False
        cost = math.ceil(self._encoder_cost * image.num_encoded)
        if num_before + cost < budget.num_tokens:  # at least one token of the image fits, too
            budget.use(cost)
            budget.num_features -= image.num_encoded
        elif budget.images or ((budget.has_prompts or num_before) and sequence.num_deferred < _MAX_DEFERRED):
            sequence.num_deferred += 1
            return False
        else:
            budget.num_features = 0  # the budget is exceeded, so this is the only new image of the step
            budget.num_used += cost
        budget.images.add(key)
        sequence.num_deferred = 0
        return True

    def _preempt_last(self) -> Sequence:
        sequence = self.running.pop()
        self._blocks.free(sequence)
        insort(self.waiting, sequence, key=priority_key)
        self.num_preemptions += 1
        return sequence


def priority_key(sequence: Sequence) -> tuple[int, int]:
    """Return a sort key that orders sequences by descending priority, then by arrival."""
    return (-sequence.priority, sequence.arrival)


@dataclass(slots=True)
class _Budget:
    """The remaining budget of a step for prompts, in tokens.

    ``num_features`` limits the memory of the features that a step encodes. The first image of a step is
    encoded even if it has more features. ``num_used`` is the cost of the scheduled prompts and images.
    ``has_prompts`` is true once prompt tokens have been scheduled. ``first_token_priority`` is the priority
    of the prompts that are completed in the step and thus wait for its end, or infinitely low if none is.
    """

    num_tokens: int
    num_features: int
    num_used: int = 0
    images: set[tuple[str, str]] = field(default_factory=set)
    has_prompts: bool = False
    first_token_priority: float = -math.inf

    def use(self, num_tokens: int) -> None:
        self.num_tokens -= num_tokens
        self.num_used += num_tokens
