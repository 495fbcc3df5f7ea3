"""Training batches. Each row is a prefix with an image, followed by many independent questions about it.

    [<s> system USER: <image>] [\\n question ASSISTANT: answer </s>] [\\n question ... ] ... [padding]
     segment 1                  segment 2, attends to 1 and itself    segment 3 ...

Positions in each segment continue from the end of the prefix, so each question is processed exactly as if it
were the only one about its image. Negative segments are conversations without an image and attend only to
themselves. `trainer` generates the batches in a separate process.
"""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tiny.conversations import KINDS, Conversation, ask_none, ask_one, ask_two, sample_system
from tiny.drawing import GRID, IMAGE_SIZE, draw, patch_labels, preprocess
from tiny.questions import Turn
from tiny.scenes import Scene, sample_scene
from tiny.tokenizer import BOS, EOS, IMAGE, build

__all__ = ["Batch", "Rows", "make_batch", "prompt_ids", "prompt_text", "training_ids"]

NUM_PATCHES = GRID * GRID
ROW = 384  # tokens per row with one image
PAIR_ROW = 448  # tokens per row with two images
_ONE = tuple(kind for kind in KINDS if kind not in ("two pictures", "no picture"))


@dataclass(frozen=True)
class Rows:
    """Packed rows of tokens. `images` contains the indices of the images in each row, row by row."""

    ids: NDArray[np.int64]  # [rows, length]
    positions: NDArray[np.int64]
    segments: NDArray[np.int16]
    targets: NDArray[np.bool_]  # True for answer tokens
    images: NDArray[np.int64]  # [rows * images per row]
    kinds: tuple[tuple[str, ...], ...]  # per row, the kinds of the conversations in segments 2, 3, ...


@dataclass(frozen=True)
class Batch:
    """Images with patch labels, rows of questions about one image, and rows of questions about two images."""

    index: int
    pixels: NDArray[np.uint8]  # [images, IMAGE_SIZE, IMAGE_SIZE, 3]
    labels: NDArray[np.int64]  # [images, labels, patches]
    single: Rows
    pairs: Rows


@cache
def _tokenizer() -> Tokenizer:
    return build()


def _encode(text: str) -> list[int]:
    ids: list[int] = _tokenizer().encode(text, add_special_tokens=False).ids
    return ids


def prefix_ids(system: str, num_images: int) -> list[int]:
    """Return the tokens up to and including the last image."""
    ids = [BOS, *_encode(f"{system} USER: ".lstrip())]
    for number in range(num_images):
        ids += (_encode("\n") if number else []) + [IMAGE] * NUM_PATCHES
    return ids


def _turn_texts(turns: tuple[Turn, ...], opening: str) -> list[str]:
    first = [opening + turns[0].question]
    return first + [f"USER: {turn.question}" for turn in turns[1:]]


def prompt_ids(system: str, turns: tuple[Turn, ...], num_images: int) -> list[int]:
    """Return the prompt for the last turn, with exactly the tokens that the server would use."""
    opening = "\n" if num_images else f"{system} USER: ".lstrip()
    ids = prefix_ids(system, num_images) if num_images else [BOS]
    texts = _turn_texts(turns, opening)
    for text, turn in zip(texts[:-1], turns[:-1], strict=True):
        ids += [*_encode(f"{text} ASSISTANT: {turn.answer}"), EOS]
    return ids + _encode(f"{texts[-1]} ASSISTANT:")


def training_ids(turns: tuple[Turn, ...], opening: str) -> tuple[list[int], list[bool]]:
    """Return the tokens after the prefix, and whether the model is trained to generate each of them."""
    ids: list[int] = []
    targets: list[bool] = []
    for text, turn in zip(_turn_texts(turns, opening), turns, strict=True):
        num_prompt = len(_encode(f"{text} ASSISTANT:"))
        whole = [*_encode(f"{text} ASSISTANT: {turn.answer}"), EOS]
        ids += whole
        targets += [False] * num_prompt + [True] * (len(whole) - num_prompt)
    return ids, targets


def prompt_text(system: str, turns: tuple[Turn, ...], num_images: int) -> str:
    """Return the prompt as text with `<image>` placeholders, for programs that have their own tokenizer."""
    parts = [f"{system} USER: ".lstrip() + "<image>\n" * num_images + f"{turns[0].question} ASSISTANT:"]
    for before, turn in zip(turns[:-1], turns[1:], strict=True):
        parts.append(f" {before.answer}</s>USER: {turn.question} ASSISTANT:")
    return "".join(parts)


class _Row:
    """A row under construction. Its four lists always have the same length, which is at most `length`."""

    def __init__(self, length: int, system: str, num_images: int) -> None:
        self.length = length
        self.system = system
        self.ids = prefix_ids(system, num_images)
        self.prefix = len(self.ids)
        self.positions = list(range(self.prefix))
        self.segments = [1] * self.prefix
        self.targets = [False] * self.prefix
        self.kinds: list[str] = []

    def add(self, conversation: Conversation) -> bool:
        """Append a conversation. Return False if it does not fit."""
        has_image = conversation.kind != "no picture"
        if has_image:
            ids, targets = training_ids(conversation.turns, "\n")
        else:
            ids, targets = training_ids(conversation.turns, f"{self.system} USER: ".lstrip())
            ids, targets = [BOS, *ids], [False, *targets]
        if len(self.ids) + len(ids) > self.length:
            return False
        start = self.prefix if has_image else 0
        self.kinds.append(conversation.kind)
        segment = 1 + len(self.kinds)
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.segments += [segment if has_image else -segment] * len(ids)
        self.targets += targets
        return True


def make_batch(
    stream: str, index: int, *, size: int, num_pairs: int, weights: dict[str, float] | None = None
) -> Batch:
    """Return batch `index` of a stream: images starting at `index * size`, and random pairs of them."""
    rng = random.Random(f"batch/{stream}/{index}")
    scenes = [sample_scene(stream, index * size + number) for number in range(size)]
    weights = weights or {}
    single = [_single_row(scene, rng, weights) for scene in scenes]
    pairs = [rng.sample(range(size), 2) for _ in range(num_pairs)]
    double = [_pair_row(scenes[first], scenes[second], rng) for first, second in pairs]
    pixels = np.stack([np.asarray(preprocess(draw(scene))) for scene in scenes])
    assert pixels.shape[1] == IMAGE_SIZE
    return Batch(
        index=index,
        pixels=pixels,
        labels=np.stack([patch_labels(scene) for scene in scenes]),
        single=_stack(single, np.arange(size)),
        pairs=_stack(double, np.array(pairs, np.int64).reshape(-1)),
    )


def _single_row(scene: Scene, rng: random.Random, weights: dict[str, float]) -> _Row:
    row = _Row(ROW, sample_system(rng), 1)
    kinds = [*_ONE, "no picture"]
    chances = [weights.get(kind, 1.0) * (0.7 if kind == "no picture" else 1.0) for kind in kinds]
    misses = 0
    while misses < 3:
        kind = rng.choices(kinds, chances)[0]
        conversation = ask_none(scene, rng) if kind == "no picture" else ask_one(scene, kind, rng)
        if conversation is not None and not row.add(conversation):
            misses += 1
    return row


def _pair_row(first: Scene, second: Scene, rng: random.Random) -> _Row:
    row = _Row(PAIR_ROW, sample_system(rng), 2)
    while row.add(ask_two(first, second, rng)):
        pass
    return row


def _stack(rows: list[_Row], images: NDArray[np.int64]) -> Rows:
    length = rows[0].length if rows else ROW
    ids = np.full((len(rows), length), EOS, np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    segments = np.zeros((len(rows), length), np.int16)
    targets = np.zeros((len(rows), length), np.bool_)
    for number, row in enumerate(rows):
        used = len(row.ids)
        ids[number, :used] = row.ids
        positions[number, :used] = row.positions
        segments[number, :used] = row.segments
        targets[number, :used] = row.targets
    return Rows(ids, positions, segments, targets, images, tuple(tuple(row.kinds) for row in rows))
