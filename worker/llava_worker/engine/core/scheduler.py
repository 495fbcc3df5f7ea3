"""What the next forward pass computes: continuous batching under a token budget.

Each step, in this order:

0. whoever waits with a higher priority than one that runs gets its place, if there is no other;
1. every decoding sequence gets its one token: a running stream never waits for somebody's long prompt;
2. prompts already begun go on, the most urgent first, in chunks of what is left of the budget;
3. waiting sequences are admitted, the most urgent first, while blocks for their whole prompt are free; those
   with a higher priority than any prompt begun, before 2.

More urgent is who has the higher priority, and among equals who came first. What one running sequence is
about to compute and a waiting one could share is not computed twice: the waiting one lets others pass until
it is there.

When a decoding sequence finds no free block, too, the least urgent running one is preempted: it loses its
blocks, goes back to its place in the queue and is computed again, prompt and answer so far, when there is
room.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from llava_worker.engine.core.block_manager import BlockCopy, BlockManager
from llava_worker.engine.core.sequence import ImageSpan, Sequence

__all__ = ["Chunk", "Plan", "Scheduler"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, end) of a sequence go through the model in this step.

    ``drafts`` go with them, guesses at the tokens after the sequence's last; only a last chunk has any. One
    that ``is_ahead`` is a single token that only the device knows yet: the step before chooses it.
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
        """Of these, the prompt's; the rest are the answer's."""
        return max(0, min(self.end, len(self.sequence.prompt_ids)) - self.start)

    @property
    def is_last(self) -> bool:
        """After this chunk everything is computed, and the next token can be chosen."""
        return self.is_ahead or self.end == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: the chunks, one a sequence, and what must be copied, in this order, before they are computed.

    Without chunks there is nothing to copy either.
    """

    chunks: list[Chunk]
    copies: list[BlockCopy]


class Scheduler:
    """Walks sequences from waiting to running and back.

    Invariant: a sequence is in one of ``waiting`` and ``running``; only running ones hold blocks; in both the
    most urgent is first. No sequence alone may need more blocks than there are: the engine refuses it before.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_sequences: int,
        max_batch_tokens: int,
        encoded: Container[tuple[str, str]] = (),
    ) -> None:
        """``encoded`` holds the (cache_scope, digest) of pictures that need no encoding any more."""
        if max_batch_tokens < max_num_sequences:
            raise ValueError(
                f"max_batch_tokens is {max_batch_tokens}; it must be at least max_num_sequences "
                f"({max_num_sequences}), or not every stream gets its token each step"
            )
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_added = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # found computed on admission, after a preemption too
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
        insort(self.waiting, sequence, key=_urgency)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was aborted; its blocks are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._blocks.release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> Plan:
        """The next step; without chunks only when there is no sequence at all."""
        budget = _Budget(self._max_batch_tokens, self._max_batch_tokens)
        self._make_way()
        plan = Plan(self._schedule_decodes(budget), [])
        begun = [sequence for sequence in self.running if sequence.num_uncomputed > 1]
        if begun:
            self._schedule_admissions(budget, plan, above=begun[0].priority)
        plan.chunks.extend(self._schedule_begun_prompts(begun, budget))
        self._schedule_admissions(budget, plan)
        return plan

    def _make_way(self) -> None:
        """Before anything is planned, because whoever goes loses its blocks."""
        if not self.waiting or self._blocks.is_coming(self.waiting[0]):
            return
        first = self.waiting[0]
        while self._is_more_urgent() and not self._has_place(first):
            self._preempt()

    def _is_more_urgent(self) -> bool:
        """Whether the first who waits may take the place of the last who runs."""
        return bool(self.running) and self.running[-1].priority < self.waiting[0].priority

    def _has_place(self, sequence: Sequence) -> bool:
        num_running = len(self.running)
        return num_running < self._max_num_sequences and self._blocks.has_room(
            sequence, num_spare=num_running
        )

    def schedule_ahead(self, sequences: list[Sequence]) -> list[Chunk]:
        """A step of ``sequences``, all that will run then, by the token that each of them gets meanwhile.

        Empty where the next step may be another one: somebody waits and may be taken on, or there are not
        blocks for all. Who got one then has it early; whoever ends meanwhile gives it back.
        """
        if self.waiting and (len(sequences) < self._max_num_sequences or self._is_more_urgent()):
            return []
        if not all(self._blocks.stretch(each, 1) for each in sequences):
            return []
        return [Chunk(each, each.num_tokens, each.num_tokens + 1, is_ahead=True) for each in sequences]

    def _schedule_decodes(self, budget: _Budget) -> list[Chunk]:
        chunks = []
        for sequence in self.running:  # may shrink meanwhile, from its end: that is where preemption takes
            if sequence.num_uncomputed == 1 and self._make_room(sequence):
                budget.num_tokens -= 1
                chunks.append(Chunk(sequence, sequence.num_computed, sequence.num_tokens))
        return chunks

    def _make_room(self, sequence: Sequence) -> bool:
        """A slot for the newest token; False if the sequence itself was the least urgent and had to go."""
        while not self._blocks.grow(sequence):
            if self._preempt() is sequence:
                return False
        return True

    def _schedule_begun_prompts(self, begun: list[Sequence], budget: _Budget) -> list[Chunk]:
        chunks = (self._next_chunk(sequence, budget) for sequence in begun)
        return [chunk for chunk in chunks if chunk is not None]

    def _schedule_admissions(self, budget: _Budget, plan: Plan, *, above: int | None = None) -> None:
        """Of those with a priority ``above`` this one, if it is given."""
        for sequence in list(self.waiting):
            if budget.num_tokens == 0 or len(self.running) == self._max_num_sequences:
                break
            if above is not None and sequence.priority <= above:
                break
            if self._blocks.is_coming(sequence):
                continue
            # Each running stream will want its next block soon: admitting into the last ones only to preempt
            # again would throw the work away.
            copies = self._blocks.admit(sequence, num_spare=len(self.running))
            if copies is None:
                break
            plan.copies.extend(copies)
            self._start(sequence)
            chunk = self._next_chunk(sequence, budget)
            if chunk is None:  # its first picture has to wait for the next step
                break
            plan.chunks.append(chunk)

    def _start(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_urgency)
        self.num_cached_tokens += sequence.num_computed
        if sequence.num_cached is None:
            sequence.num_cached = min(sequence.num_computed, len(sequence.prompt_ids))

    def _next_chunk(self, sequence: Sequence, budget: _Budget) -> Chunk | None:
        """As much of the sequence as the budget allows; None if that is nothing."""
        start = sequence.num_computed
        end = min(sequence.num_tokens, start + budget.num_tokens)
        for image in sequence.images_within(start, end):
            if not self._afford(sequence, image, budget):
                end = max(start, image.start)
                break
        if end == start:
            return None
        budget.num_tokens -= end - start
        return Chunk(sequence, start, end)

    def _afford(self, sequence: Sequence, image: ImageSpan, budget: _Budget) -> bool:
        """Pay for encoding a picture, once per step and only if it was not encoded before."""
        name = (sequence.cache_scope, image.content)
        if name in self._encoded or name in budget.pictures:
            return True
        if budget.pictures and image.length > budget.num_image_tokens:
            return False
        budget.num_image_tokens -= image.length
        budget.pictures.add(name)
        return True

    def _preempt(self) -> Sequence:
        victim = self.running.pop()
        self._blocks.release(victim)
        insort(self.waiting, victim, key=_urgency)
        self.num_preemptions += 1
        return victim


def _urgency(sequence: Sequence) -> tuple[int, int]:
    """Sorts the most urgent to the front."""
    return (-sequence.priority, sequence.arrival)


@dataclass(slots=True)
class _Budget:
    """What a step may still take on.

    Encoding is paid per picture token, from a purse of its own of the same size: a picture that is larger
    than the whole purse is encoded as the step's first one rather than never.
    """

    num_tokens: int
    num_image_tokens: int
    pictures: set[tuple[str, str]] = field(default_factory=set)
