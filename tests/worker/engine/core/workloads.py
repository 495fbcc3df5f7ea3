"""Random workloads for an engine, generated from a seed. Running them checks the guarantees of the engine.

The workloads do not depend on the model. An `Expected` function returns the output that a request has when it
runs alone.
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

from tests.worker.engine.outputs import num_computed_tokens
from tests.worker.sampling_params import greedy

IMAGE_TOKEN = 127
NUM_IMAGE_TOKENS = 4
MAX_OUTPUT = 12
MAX_STEPS = 3000  # far more than any workload needs; reached only if a sequence waits forever
IMAGES = [bytes(random.Random(number).randbytes(28 * 28 * 3)) for number in range(3)]


@dataclass(frozen=True)
class Request:
    """A prompt with images from ``IMAGES`` and its sampling parameters."""

    prompt_ids: tuple[int, ...]
    images: tuple[tuple[int, int], ...]  # (start, index in IMAGES)
    sampling: SamplingParams


@dataclass(frozen=True)
class Arrival:
    """A request that arrives before step ``at``.

    Its first ``num_known`` output tokens have already been generated. If the output reaches token
    ``breaks_at``, the model fails there.
    """

    at: int
    seq_id: str
    request: Request
    scope: str
    priority: int
    max_new_tokens: int
    num_known: int
    aborted_at: int | None
    deadline_s: float | None
    breaks_at: int | None = None

    def sequence(self, output_ids: Items[int]) -> Sequence:
        request = self.request
        return Sequence(
            seq_id=self.seq_id,
            prompt_ids=list(request.prompt_ids),
            max_new_tokens=self.max_new_tokens,
            images=[
                ImageSpan(start, NUM_IMAGE_TOKENS, hashlib.sha256(IMAGES[which]).hexdigest())
                for start, which in request.images
            ],
            pixels=[IMAGES[which] for _, which in request.images],
            sampling=request.sampling,
            output_ids=list(output_ids[: self.num_known]),
            cache_scope=self.scope,
            priority=self.priority,
            deadline_s=self.deadline_s,
        )


Expected = Callable[[Arrival], list[int]]


def make_requests(rng: random.Random, count: int) -> list[Request]:
    """Generate requests that have different suffixes but share prefixes with images."""
    prefixes = [_prefix(rng) for _ in range(3)]
    requests = []
    for number in range(count):
        token_ids, images = rng.choice(prefixes)
        token_ids, images = list(token_ids), list(images)
        if rng.random() < 0.3:  # different images at the same positions
            images = [(start, rng.randrange(len(IMAGES))) for start, _ in images]
        token_ids += rng.choices(range(3, 8), k=rng.randint(1, 8))
        sampling = greedy(temperature=0.9, seed=number) if rng.random() < 0.4 else greedy()
        requests.append(Request(tuple(token_ids), tuple(images), sampling))
    return requests


def _prefix(rng: random.Random) -> tuple[list[int], list[tuple[int, int]]]:
    token_ids, images = [1], []
    for _ in range(rng.randint(0, 2)):
        token_ids += rng.choices(range(3, 6), k=rng.randint(0, 6))
        images.append((len(token_ids), rng.randrange(len(IMAGES))))
        token_ids += [IMAGE_TOKEN] * NUM_IMAGE_TOKENS
    return token_ids + rng.choices(range(3, 6), k=rng.randint(0, 6)), images


def make_arrivals(
    rng: random.Random, requests: Items[Request], count: int, *, can_break: bool = False
) -> list[Arrival]:
    """Generate arrivals with bursts, pauses, duplicates, tenants, priorities, deadlines and aborts."""
    arrivals: list[Arrival] = []
    at = 0
    while len(arrivals) < count:
        request, scope = rng.choice(requests), rng.choice("aab")
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            max_new_tokens = rng.randint(1, MAX_OUTPUT)
            arrivals.append(
                Arrival(
                    at=at,
                    seq_id=str(len(arrivals)),
                    request=request,
                    scope=scope,
                    priority=rng.choice([0, 0, 0, 1, -1]),
                    max_new_tokens=max_new_tokens,
                    num_known=rng.randint(0, max_new_tokens) if rng.random() < 0.1 else 0,
                    aborted_at=at + rng.randint(0, 12) if rng.random() < 0.15 else None,
                    deadline_s=at + rng.randint(1, 30) if rng.random() < 0.1 else None,
                    breaks_at=rng.randint(0, 8) if can_break and rng.random() < 0.1 else None,
                )
            )
        at += rng.choice([0, 0, 1, 2, 7])
    return arrivals


def make_shape(rng: random.Random, requests: Items[Request]) -> dict[str, int]:
    """Choose a random engine size, from just enough for the longest request to several times as much."""
    longest = max(len(request.prompt_ids) for request in requests) + MAX_OUTPUT + 1
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
class Results:
    """The outputs of the arrivals, keyed by sequence ID."""

    output_ids: dict[str, list[int]] = field(default_factory=dict)
    finals: dict[str, StepOutput] = field(default_factory=dict)

    def take(self, output: StepOutput) -> None:
        assert output.seq_id not in self.finals, f"{output.seq_id} has an output after its end"
        if output.token_id is not None:
            self.output_ids[output.seq_id].append(output.token_id)
        if output.is_final:
            self.finals[output.seq_id] = output


class Traffic:
    """A workload, and the clock for its deadlines, which counts steps."""

    def __init__(self, arrivals: Items[Arrival], expected: Expected) -> None:
        self.step = 0
        self._arrivals = arrivals
        self._expected = {arrival.seq_id: expected(arrival) for arrival in arrivals}

    def now(self) -> float:
        return float(self.step)

    def run(self, engine: Engine, *, max_batch_tokens: int) -> None:
        """Run until all sequences have ended.

        Raises AssertionError or BlockAccountingError if the engine violates a guarantee.
        """
        results, aborted, num_computed = Results(), set[str](), 0
        while self.step <= self._arrivals[-1].at or engine.num_sequences:
            assert self.step < MAX_STEPS, "a sequence waits forever"
            for arrival in self._arrivals:
                if arrival.at == self.step:
                    sequence = arrival.sequence(self._expected[arrival.seq_id])
                    results.output_ids[arrival.seq_id] = list(sequence.output_ids)
                    engine.add(sequence)
                if arrival.aborted_at == self.step and arrival.seq_id not in results.finals:
                    engine.abort(arrival.seq_id)
                    engine.check()
                    aborted.add(arrival.seq_id)
            for output in engine.step():
                results.take(output)
            engine.check()
            total = num_computed_tokens(engine)
            assert total - num_computed <= max_batch_tokens
            num_computed = total
            self.step += 1
        assert engine.stats().num_free_blocks == engine.stats().num_blocks
        self._check(results, aborted)

    def _check(self, results: Results, aborted: set[str]) -> None:
        for arrival in self._arrivals:
            output_ids, expected = results.output_ids[arrival.seq_id], self._expected[arrival.seq_id]
            final = results.finals.get(arrival.seq_id)
            assert output_ids == expected[: len(output_ids)], (
                f"{arrival.seq_id} differs from its output when run alone"
            )
            if arrival.seq_id in aborted:
                assert final is None
            elif final is not None and final.error and final.error.code is ErrorCode.DEADLINE_EXCEEDED:
                assert arrival.deadline_s is not None
            elif arrival.breaks_at is not None and max(arrival.breaks_at, arrival.num_known) < len(expected):
                assert final is not None
                assert final.error is not None and final.error.code is ErrorCode.INTERNAL_ERROR
                assert len(output_ids) == max(arrival.breaks_at, arrival.num_known)
            else:
                assert final is not None, f"{arrival.seq_id} has no final output"
                assert (output_ids, final.error) == (expected, None)
                assert final.finish == ("stop" if expected[-1] == 2 else "length")


def truncate(output_ids: Items[int], max_new_tokens: int) -> list[int]:
    """Truncate the output after ``max_new_tokens`` tokens or after its end token."""
    kept = list(output_ids[:max_new_tokens])
    return kept[: kept.index(2) + 1] if 2 in kept else kept


class UnreliableDrafter:
    """Proposes drafts that are mostly correct."""

    def __init__(self, rng: random.Random, outputs: dict[str, list[int]]) -> None:
        self._rng = rng
        self._outputs = outputs

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        num_known = len(sequence.output_ids)
        drafts = self._outputs[sequence.seq_id][num_known : num_known + min(max_tokens, 3)]
        return [draft if self._rng.random() < 0.8 else 9 for draft in drafts]

    def record_acceptance(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_drafted

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        pass
