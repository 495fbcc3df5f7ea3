"""The exam: questions about held-out scenes, how an answer is marked, and the bar.

Nothing here depends on a model: `predictions` has two ways to answer the questions.
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

__all__ = ["BAR_ALL", "BAR_KIND", "Question", "Result", "is_right", "questions", "table"]

BAR_ALL, BAR_KIND = 0.95, 0.90
_PER_SCENE = 3
_THING = re.compile(f"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_TEXT = re.compile(r'the (?:number (\d+)|word "(\w+)")')


@dataclass(frozen=True)
class Question:
    """One conversation whose last answer is wanted. `system` is None for LLaVA's own sentence."""

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
    """A question with what was answered to it."""

    question: Question
    answer: str

    @property
    def is_right(self) -> bool:
        return is_right(self.question.truth, self.answer)


def questions(num_scenes: int, stream: str = "test") -> Iterator[Question]:
    """Three questions of different kinds about each scene; all kinds take turns."""
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
    """The same text but for case, spaces and a final stop; a description may change its order."""
    if _plain(truth) == _plain(answer):
        return True
    if not truth.startswith("The picture shows"):
        return False
    return _named(truth) == _named(answer)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _named(text: str) -> tuple[Counter[tuple[str, ...]], list[tuple[str, ...]]]:
    return Counter(_THING.findall(text)), _TEXT.findall(text)


def table(results: Iterable[Result]) -> tuple[str, bool]:
    """Marks per kind as a Markdown table, and whether the bar is met."""
    total, right = Counter[str](), Counter[str]()
    for result in results:
        total[result.question.kind] += 1
        right[result.question.kind] += result.is_right
    rows = [(kind, right[kind], total[kind]) for kind in KINDS if total[kind]]
    rows.append(("all", right.total(), total.total()))
    lines = ["| question type | right | asked | accuracy |", "|---|---|---|---|"]
    lines += [f"| {kind} | {good} | {number} | {100 * good / number:.1f} % |" for kind, good, number in rows]
    is_met = right.total() >= BAR_ALL * total.total() and all(
        good >= BAR_KIND * number for _, good, number in rows
    )
    return "\n".join(lines), is_met
