"""The parameters of a load and the conversations that they determine. Sends nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llava_client.chat_request import user_message

from llava_cli.bench.images import ImageGenerator
from llava_cli.bench.prompts import WORDS

__all__ = ["Pictures", "Plan", "PlannedConversation", "conversations"]


class Pictures(str, Enum):
    """Which pictures go with the questions: one of its own with each, one for all, or none."""

    NEW = "new"
    SAME = "same"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A load. It ends after ``num_requests`` talks, or starts none after ``duration_s``; None: no such limit.

    Without ``rate``, ``concurrency`` talks go on at any time, and one that ends makes room for the next. With
    ``rate`` (talks a second) they arrive at random moments, whether earlier ones have ended or not, and
    ``concurrency`` (None: any number) is the most that are let in at once; the wait counts.

    A talk is ``num_turns`` questions, each with the answers before it; its picture goes with the first.
    ``ignore_eos`` asks for answers of exactly ``max_tokens``; not every server takes the field.
    """

    num_requests: int | None = 32
    duration_s: float | None = None
    concurrency: int | None = 1
    rate: float | None = None
    pictures: Pictures = Pictures.NEW
    width: int = 640  # pixels
    height: int = 480
    num_words: int = 24  # of each question
    max_tokens: int = 64
    num_turns: int = 1
    ignore_eos: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_requests is None and self.duration_s is None:
            raise ValueError("a load without an end: give num_requests or duration_s")
        if self.rate is None and self.concurrency is None:
            raise ValueError("all at once or one by one? give concurrency, rate or both")


@dataclass(frozen=True)
class PlannedConversation:
    """The questions of one conversation, and the image (a PNG file) of the first question."""

    index: int
    questions: tuple[str, ...]
    image: bytes | None

    def message(self, turn: int) -> dict[str, Any]:
        """Return the user message of a turn."""
        return user_message(self.questions[turn], self.image if turn == 0 else None)


def conversations(plan: Plan) -> Iterator[PlannedConversation]:
    """Yield the warm-up conversation, index 0, then without end those that are measured. No two are equal."""
    generator = None if plan.pictures is Pictures.NONE else ImageGenerator(plan.width, plan.height)
    for index in itertools.count():
        rng = random.Random(f"{plan.seed}/{index}")
        questions = tuple(_question(rng, plan.num_words, index) for _ in range(plan.num_turns))
        is_shared = plan.pictures is Pictures.SAME and index > 0
        image_seed = random.Random(f"{plan.seed}/picture/{1 if is_shared else index}").getrandbits(64)
        yield PlannedConversation(index, questions, generator.png(image_seed) if generator else None)


def _question(rng: random.Random, num_words: int, index: int) -> str:
    """Return random words and, last, the index: questions differ, but not in their first words."""
    return " ".join(rng.choices(WORDS, k=num_words)) + f" ({index})?"
