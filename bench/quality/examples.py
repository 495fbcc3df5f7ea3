"""The tokens on which formats are compared: windows of a text, and questions about drawn scenes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from bench.record import ROOT

sys.path.append(str(ROOT / "tools"))  # for the imports from ``tiny``
from tiny.conversations import SYSTEM
from tiny.drawing import draw, preprocess
from tiny.evaluation import Question
from tiny.packing import prompt_ids
from tiny.tokenizer import IMAGE

__all__ = ["TEXT", "TINY", "Example", "question_example", "text_windows", "tiny_tokenizer"]

TEXT = Path(__file__).with_name("story.text")  # not .txt, because proselint would check its style
TINY = ROOT / "worker" / "llava_worker" / "tiny"


@dataclass(frozen=True)
class Example:
    """A sequence of tokens with its images.

    The probabilities of the tokens after position ``first`` are compared.
    """

    token_ids: list[int]
    first: int
    pixels: tuple[bytes, ...] = ()
    starts: tuple[int, ...] = ()  # position of the first token of each image

    @property
    def targets(self) -> list[int]:
        return self.token_ids[self.first + 1 :]


def text_windows(text: str, folder: Path, *, size: int, num: int) -> Iterator[Example]:
    """Yield the first ``num`` windows of a text, tokenized with the tokenizer in ``folder``.

    As in llama.cpp's llama-perplexity, windows do not overlap, and the second half of each is scored, so that
    every token has a context of at least half a window. Raises ValueError if the text is too short.
    """
    token_ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    if len(token_ids) < num * size:
        raise ValueError(
            f"The text has {len(token_ids)} tokens; {num} windows of {size} tokens require {num * size}. "
            "Use a longer text, or reduce --windows or --window."
        )
    for start in range(0, num * size, size):
        yield Example(token_ids[start : start + size], size // 2)


def question_example(question: Question) -> Example:
    """Return the prompt for a question to the bundled model, followed by the correct answer."""
    system = SYSTEM if question.system is None else question.system
    ids = prompt_ids(system, question.turns, len(question.scenes))
    starts = [i for i, token in enumerate(ids) if token == IMAGE and (i == 0 or ids[i - 1] != IMAGE)]
    answer = tiny_tokenizer().encode(question.truth, add_special_tokens=False).ids
    pixels = tuple(preprocess(draw(scene)).tobytes() for scene in question.scenes)
    return Example(ids + answer, len(ids) - 1, pixels, tuple(starts[: len(pixels)]))


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))
