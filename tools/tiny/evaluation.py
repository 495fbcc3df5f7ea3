"""Evaluation questions about held-out scenes, their scoring, and the required accuracy.

This module does not run the model. `predictions` runs it, either with transformers or through a server.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from PIL import Image

from tiny.conversations import KINDS, Conversation, ask_none, ask_one, ask_two
from tiny.drawing import draw
from tiny.questions import Turn
from tiny.scenes import COLOURS, SHAPES, Scene, sample_scene

__all__ = [
    "MIN_ACCURACY",
    "MIN_KIND_ACCURACY",
    "Question",
    "Result",
    "accuracy_table",
    "evaluation_questions",
    "is_right",
]

MIN_ACCURACY, MIN_KIND_ACCURACY = 0.95, 0.90
_PER_SCENE = 3
_THING = re.compile(f"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_TEXT = re.compile(r'the (?:number (\d+)|word "(\w+)")')


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question. If `system` is None, LLaVA's own system prompt is used."""

    kind: str
    system: str | None
    turns: tuple[Turn, ...]
    scenes: tuple[Scene, ...]

    @property
    def truth(self) -> str:
        return self.turns[-1].answer

    def images(self) -> list[Image.Image]:
        return [draw(scene) for scene in self.scenes]


@dataclass(frozen=True)
class Result:
    """A question and the model's answer."""

    question: Question
    answer: str

    @property
    def is_right(self) -> bool:
        return is_right(self.question.truth, self.answer)


def evaluation_questions(num_scenes: int, stream: str = "test") -> Iterator[Question]:
    """Yield three questions per scene, cycling through the question types."""
    for index in range(num_scenes):
        rng = random.Random(f"exam/{stream}/{index}")
        scene = sample_scene(stream, index)
        turn, num_questions = index * _PER_SCENE, 0
        while num_questions < _PER_SCENE:
            kind = KINDS[turn % len(KINDS)]
            other = sample_scene(f"{stream}/other", index)
            question = _ask(scene, other, kind, rng)
            if question is not None:
                yield question
            num_questions += question is not None
            turn += 1


def _ask(scene: Scene, other: Scene, kind: str, rng: random.Random) -> Question | None:
    scenes: tuple[Scene, ...] = (scene,)
    conversation: Conversation | None
    if kind == "two pictures":
        conversation, scenes = ask_two(scene, other, rng), (scene, other)
    elif kind == "no picture":
        conversation, scenes = ask_none(scene, rng), ()
    else:
        conversation = ask_one(scene, kind, rng)
    if conversation is None:
        return None
    system = None if rng.random() < 0.9 else "You are a helpful assistant."
    return Question(conversation.kind, system, conversation.turns, scenes)


def is_right(truth: str, answer: str) -> bool:
    """Return whether an answer is correct.

    Case, spaces and a final period are ignored, and a description may list the objects in any order.
    """
    if _plain(truth) == _plain(answer):
        return True
    if not truth.startswith("The picture shows"):
        return False
    return _named(truth) == _named(answer)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _named(text: str) -> tuple[Counter[tuple[str, ...]], list[tuple[str, ...]]]:
    return Counter(_THING.findall(text)), _TEXT.findall(text)


def accuracy_table(results: Iterable[Result]) -> tuple[str, bool]:
    """Return the accuracy per question type as a Markdown table, and whether all requirements are met."""
    total, right = Counter[str](), Counter[str]()
    for result in results:
        total[result.question.kind] += 1
        right[result.question.kind] += result.is_right
    rows = [(kind, right[kind], total[kind]) for kind in KINDS if total[kind]]
    rows.append(("all", right.total(), total.total()))
    lines = ["| question type | correct | questions | accuracy |", "|---|---|---|---|"]
    lines += [f"| {kind} | {good} | {number} | {100 * good / number:.1f}% |" for kind, good, number in rows]
    has_passed = right.total() >= MIN_ACCURACY * total.total() and all(
        good >= MIN_KIND_ACCURACY * number for _, good, number in rows
    )
    return "\n".join(lines), has_passed
