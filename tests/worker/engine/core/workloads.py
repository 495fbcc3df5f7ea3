"""Random traffic for an engine, made from a seed, and the run that holds the engine to its promises.

Nothing here knows which model the engine has: an `Expected` says what each answer is when it is alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from llava_wire.messages.event import ErrorCode
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import ImageSpan, Sequence, StepOutput
from llava_worker.engine.engine import Engine

from tests.worker.sampling_params import greedy

IMAGE_TOKEN = 127
NUM_PICTURE_TOKENS = 4
LONGEST_ANSWER = 12
MOST_STEPS = 3000  # far beyond what any of these workloads takes: somebody waits for ever
PICTURES = [bytes(random.Random(number).randbytes(28 * 28 * 3)) for number in range(3)]


@dataclass(frozen=True)
class Question:
    """A prompt with its pictures, each one of ``PICTURES``."""

    prompt_ids: tuple[int, ...]
    pictures: tuple[tuple[int, int], ...]  # (start, which)
    sampling: SamplingParams


@dataclass(frozen=True)
class Arrival:
    """A question that comes before step ``at``. ``told`` tokens of its answer are known from elsewhere.

    The model fails at token ``breaks_at`` of its answer, if it comes to that.
    """

    at: int
    seq_id: str
    question: Question
    scope: str
    priority: int
    max_new_tokens: int
    told: int
    aborted_at: int | None
    deadline_s: float | None
    breaks_at: int | None = None

    def sequence(self, answer: Items[int]) -> Sequence:
        question = self.question
        return Sequence(
            seq_id=self.seq_id,
            prompt_ids=list(question.prompt_ids),
            max_new_tokens=self.max_new_tokens,
            images=[
                ImageSpan(start, NUM_PICTURE_TOKENS, hashlib.sha256(PICTURES[which]).hexdigest())
                for start, which in question.pictures
            ],
            pixels=[PICTURES[which] for _, which in question.pictures],
            sampling=question.sampling,
            output_ids=list(answer[: self.told]),
            cache_scope=self.scope,
            priority=self.priority,
            deadline_s=self.deadline_s,
        )


Expected = Callable[[Arrival], list[int]]


def make_questions(rng: random.Random, count: int) -> list[Question]:
    """Beginnings in common, with pictures in the middle of them, and ends of their own."""
    stems = [_stem(rng) for _ in range(3)]
    questions = []
    for number in range(count):
        words, pictures = rng.choice(stems)
        words, pictures = list(words), list(pictures)
        if rng.random() < 0.3:  # another picture or none in the same place
            pictures = [(start, rng.randrange(len(PICTURES))) for start, _ in pictures]
        words += rng.choices(range(3, 8), k=rng.randint(1, 8))
        sampling = greedy(temperature=0.9, seed=number) if rng.random() < 0.4 else greedy()
        questions.append(Question(tuple(words), tuple(pictures), sampling))
    return questions


def _stem(rng: random.Random) -> tuple[list[int], list[tuple[int, int]]]:
    words, pictures = [1], []
    for _ in range(rng.randint(0, 2)):
        words += rng.choices(range(3, 6), k=rng.randint(0, 6))
        pictures.append((len(words), rng.randrange(len(PICTURES))))
        words += [IMAGE_TOKEN] * NUM_PICTURE_TOKENS
    return words + rng.choices(range(3, 6), k=rng.randint(0, 6)), pictures


def make_arrivals(
    rng: random.Random, questions: Items[Question], count: int, *, can_break: bool = False
) -> list[Arrival]:
    """Bursts and pauses, twins, tenants, urgent and late ones, some that are given up."""
    arrivals: list[Arrival] = []
    at = 0
    while len(arrivals) < count:
        question, scope = rng.choice(questions), rng.choice("aab")
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            max_new_tokens = rng.randint(1, LONGEST_ANSWER)
            arrivals.append(
                Arrival(
                    at=at,
                    seq_id=str(len(arrivals)),
                    question=question,
                    scope=scope,
                    priority=rng.choice([0, 0, 0, 1, -1]),
                    max_new_tokens=max_new_tokens,
                    told=rng.randint(0, max_new_tokens) if rng.random() < 0.1 else 0,
                    aborted_at=at + rng.randint(0, 12) if rng.random() < 0.15 else None,
                    deadline_s=at + rng.randint(1, 30) if rng.random() < 0.1 else None,
                    breaks_at=rng.randint(0, 8) if can_break and rng.random() < 0.1 else None,
                )
            )
        at += rng.choice([0, 0, 1, 2, 7])
    return arrivals


def make_shape(rng: random.Random, questions: Items[Question]) -> dict[str, int]:
    """Blocks, slots and budget: from hardly enough for the longest of the questions to enough for several."""
    longest = max(len(question.prompt_ids) for question in questions) + LONGEST_ANSWER + 1
    block_size = rng.choice([1, 2, 3, 4, 5, 8, 16])
    num_tokens = int(longest * rng.choice([1, 1.2, 1.6, 3, 6]))
    max_num_sequences = rng.randint(1, 8)
    return {
        "block_size": block_size,
        "num_blocks": -(-num_tokens // block_size),
        "max_num_sequences": max_num_sequences,
        "max_batch_tokens": rng.choice([max_num_sequences, 8, 13, 40, 200]),
    }


@dataclass
class Tally:
    """What became of the arrivals, by name."""

    answers: dict[str, list[int]] = field(default_factory=dict)
    finals: dict[str, StepOutput] = field(default_factory=dict)

    def take(self, output: StepOutput) -> None:
        assert output.seq_id not in self.finals, f"{output.seq_id} was told something after its end"
        if output.token_id is not None:
            self.answers[output.seq_id].append(output.token_id)
        if output.is_final:
            self.finals[output.seq_id] = output


class Traffic:
    """One workload and the clock of its deadlines, which counts steps."""

    def __init__(self, arrivals: Items[Arrival], expected: Expected) -> None:
        self.step = 0
        self._arrivals = arrivals
        self._answers = {arrival.seq_id: expected(arrival) for arrival in arrivals}

    def now(self) -> float:
        return float(self.step)

    def run(self, engine: Engine, *, max_batch_tokens: int) -> None:
        """To the end of all. Raises AssertionError or BlockAccountingError where a promise is broken."""
        tally, aborted, num_computed = Tally(), set[str](), 0
        while self.step <= self._arrivals[-1].at or engine.num_sequences:
            assert self.step < MOST_STEPS, "somebody waits for ever"
            for arrival in self._arrivals:
                if arrival.at == self.step:
                    sequence = arrival.sequence(self._answers[arrival.seq_id])
                    tally.answers[arrival.seq_id] = list(sequence.output_ids)
                    engine.add(sequence)
                if arrival.aborted_at == self.step and arrival.seq_id not in tally.finals:
                    engine.abort(arrival.seq_id)
                    engine.check()
                    aborted.add(arrival.seq_id)
            for output in engine.step():
                tally.take(output)
            engine.check()
            total = engine.stats().num_computed_tokens_total
            assert total - num_computed <= max_batch_tokens
            num_computed = total
            self.step += 1
        assert engine.stats().num_free_blocks == engine.stats().num_blocks
        self._judge(tally, aborted)

    def _judge(self, tally: Tally, aborted: set[str]) -> None:
        for arrival in self._arrivals:
            told, answer = tally.answers[arrival.seq_id], self._answers[arrival.seq_id]
            final = tally.finals.get(arrival.seq_id)
            assert told == answer[: len(told)], f"{arrival.seq_id} was told other tokens than alone"
            if arrival.seq_id in aborted:
                assert final is None
            elif final is not None and final.error and final.error.code is ErrorCode.DEADLINE_EXCEEDED:
                assert arrival.deadline_s is not None
            elif arrival.breaks_at is not None and max(arrival.breaks_at, arrival.told) < len(answer):
                assert final is not None
                assert final.error is not None and final.error.code is ErrorCode.INTERNAL_ERROR
                assert len(told) == max(arrival.breaks_at, arrival.told)
            else:
                assert final is not None, f"{arrival.seq_id} got lost"
                assert (told, final.error) == (answer, None)
                assert final.finish == ("stop" if answer[-1] == 2 else "length")


def cut(answer: Items[int], max_new_tokens: int) -> list[int]:
    """A long answer as far as ``max_new_tokens`` or its end mark."""
    kept = list(answer[:max_new_tokens])
    return kept[: kept.index(2) + 1] if 2 in kept else kept


class HalfRightDrafter:
    """Knows the answers; spoils some of what it proposes."""

    def __init__(self, rng: random.Random, answers: dict[str, list[int]]) -> None:
        self._rng = rng
        self._answers = answers

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        num_known = len(sequence.output_ids)
        drafts = self._answers[sequence.seq_id][num_known : num_known + min(max_tokens, 3)]
        return [draft if self._rng.random() < 0.8 else 9 for draft in drafts]

    def record_acceptance(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_drafted

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        pass
