"""The parameters of a load test and the conversations generated from them. Does no I/O."""

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

__all__ = ["Images", "Plan", "PlannedConversation", "conversations"]


class Images(str, Enum):
    """Which images to use: a new one for each conversation, the same one for all conversations, or none."""

    NEW = "new"
    SAME = "same"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parameters of a load test.

    The test runs at most ``num_requests`` conversations and does not start new ones after ``duration_s``
    seconds. Either limit can be disabled by setting it to None.

    If ``rate`` is None, ``concurrency`` conversations run at the same time. When one ends, the next one
    starts. If ``rate`` is set, conversations arrive at random times, on average ``rate`` per second, whether
    or not earlier ones have ended. In this case, ``concurrency`` limits how many run at once (None means no
    limit), and the measured latency includes the time that a conversation spends waiting for a slot.

    Each conversation consists of ``num_turns`` questions. Each request includes the previous turns. The image
    is sent with the first question. ``ignore_eos`` asks the server to generate exactly ``max_tokens`` tokens.
    Not every server supports this.
    """

    num_requests: int | None = 32
    duration_s: float | None = None
    concurrency: int | None = 1
    rate: float | None = None
    images: Images = Images.NEW
    width: int = 640  # pixels
    height: int = 480
    num_words: int = 24  # per question
    max_tokens: int = 64
    num_turns: int = 1
    ignore_eos: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_requests is None and self.duration_s is None:
            raise ValueError("The load test would never end. Set num_requests or duration_s.")
        if self.rate is None and self.concurrency is None:
            raise ValueError("Neither concurrency nor rate is set. Set at least one of them.")


@dataclass(frozen=True)
class PlannedConversation:
    """The questions in one conversation, and the image (a PNG file) that is sent with the first question."""

    index: int
    questions: tuple[str, ...]
    image: bytes | None

    def message(self, turn: int) -> dict[str, Any]:
        """Return the user message for a turn."""
        return user_message(self.questions[turn], self.image if turn == 0 else None)


def conversations(plan: Plan) -> Iterator[PlannedConversation]:
    """Yield the warm-up conversation (index 0), then an endless series of conversations to measure.

    No two conversations are the same.
    """
    generator = None if plan.images is Images.NONE else ImageGenerator(plan.width, plan.height)
    for index in itertools.count():
        rng = random.Random(f"{plan.seed}/{index}")
        questions = tuple(_question(rng, plan.num_words, index) for _ in range(plan.num_turns))
        is_shared = plan.images is Images.SAME and index > 0
        image_seed = random.Random(f"{plan.seed}/picture/{1 if is_shared else index}").getrandbits(64)
        yield PlannedConversation(index, questions, generator.png(image_seed) if generator else None)


def _question(rng: random.Random, num_words: int, index: int) -> str:
    """Return random words, followed by the index so that no two conversations share a question."""
    return " ".join(rng.choices(WORDS, k=num_words)) + f" ({index})?"
