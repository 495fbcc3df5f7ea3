"""POPE-, VQAv2- and MMBench-shaped datasets, drawn by the scene generator of the bundled model.

Each is stored as lmms-eval's hub datasets would be in a local folder: one folder per split, with image files
and ``metadata.jsonl``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiny.drawing import draw
from tiny.questions import LETTERS, MAKERS, SHORT, Turn
from tiny.scenes import Scene, sample_scene

__all__ = ["ANSWERS_ARE_SHIFTED", "TASKS", "write_datasets", "write_gqa", "write_llava_bench"]

HUB = "lmms-lab-encoder"
FOLDERS = {
    "pope": (f"{HUB}/POPE/Full/adversarial", f"{HUB}/POPE/Full/popular", f"{HUB}/POPE/Full/random"),
    "vqav2": (f"{HUB}/VQAv2/validation",),
    "mmbench": (f"{HUB}/MMBench/en/dev",),
}
TASKS = ("pope_adv", "pope_pop", "pope_random", "vqav2_val", "mmbench_en_dev")
# In this task, each row has the expected answer of the next row, so that most correct responses are wrong.
ANSWERS_ARE_SHIFTED = "vqav2_val"


def write_datasets(folder: Path, num_items: int) -> None:
    """Write ``num_items`` rows for each split."""
    for kind, places in FOLDERS.items():
        for place in places:
            _write(folder / place, kind, num_items)


def write_llava_bench(folder: Path, num_items: int) -> None:
    """Write a dataset in the format of LLaVA-Bench, whose responses are scored by a judge."""
    _write(folder / HUB / "llava-bench-in-the-wild/train", "llava-bench", num_items)


def write_gqa(folder: Path, num_items: int) -> None:
    """Write a dataset in the format of GQA, whose images are a second dataset."""
    root = folder / HUB / "GQA"
    images = root / "testdev_balanced_images/testdev"
    _write(images, "gqa", num_items)
    rows = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    questions = root / "testdev_balanced_instructions/testdev/metadata.jsonl"
    questions.parent.mkdir(parents=True)
    texts = [{"imageId": row["id"], "question": row["question"], "answer": row["answer"]} for row in rows]
    questions.write_text("".join(json.dumps(row) + "\n" for row in texts))
    names = [{"file_name": row["file_name"], "id": row["id"]} for row in rows]
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in names))


def _write(folder: Path, kind: str, num_items: int) -> None:
    folder.mkdir(parents=True)
    rows = []
    for number, (scene, turn) in zip(range(num_items), _questions(kind, folder.name), strict=False):
        name = f"{number}.png"
        draw(scene).save(folder / name)
        rows.append({"file_name": name, **_ROWS[kind](turn, number)})
    if kind == "vqav2":
        shifted = [*rows[1:], rows[0]]
        rows = [{**row, "answers": other["answers"]} for row, other in zip(rows, shifted, strict=True)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _questions(kind: str, stream: str) -> Iterator[tuple[Scene, Turn]]:
    """Yield questions that ask for a short answer or a letter."""
    makers = _MAKERS[kind]
    for index in range(10_000):
        rng = random.Random(f"{kind}/{stream}/{index}")
        scene = sample_scene(f"benchmark/{stream}", index)
        turn = MAKERS[rng.choice(makers)](scene, rng)
        if turn is not None and turn.question.endswith(LETTERS if kind == "mmbench" else SHORT):
            yield scene, turn


def _pope(turn: Turn, number: int) -> dict[str, Any]:
    return {
        "question_id": str(number),
        "question": turn.question.removesuffix(SHORT),
        "answer": turn.answer.lower(),
    }


def _vqav2(turn: Turn, number: int) -> dict[str, Any]:
    answers = [{"answer": turn.answer.lower(), "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    question = turn.question.removesuffix(SHORT)
    return {"question_id": number, "question": question, "answers": answers, "answer": turn.answer.lower()}


def _mmbench(turn: Turn, number: int) -> dict[str, Any]:
    question, *options = turn.question.removesuffix(LETTERS).split("\n")
    choices = {option[0]: option[3:] for option in options}
    return {
        "index": number,
        "question": question,
        "hint": "nan",
        "answer": turn.answer,
        **{letter: choices.get(letter, "nan") for letter in "ABCD"},
        "category": "scenes",
        "L2-category": "scenes",
        "source": "scenes",
        "split": "dev",
    }


def _llava_bench(turn: Turn, number: int) -> dict[str, Any]:
    question = turn.question.removesuffix(SHORT)
    return {
        "question_id": number,
        "question": question,
        "gpt_answer": turn.answer,
        "caption": "A scene.",
        "category": "conv",
    }


def _gqa(turn: Turn, number: int) -> dict[str, Any]:
    question = turn.question.removesuffix(SHORT)
    return {"id": f"n{number}", "question": question, "answer": turn.answer.lower()}


_ROWS = {"pope": _pope, "vqav2": _vqav2, "mmbench": _mmbench, "llava-bench": _llava_bench, "gqa": _gqa}
_MAKERS = {
    "pope": ["exists"],
    "vqav2": ["colour", "shape", "count", "read"],
    "mmbench": ["options"],
    "llava-bench": ["colour"],
    "gqa": ["colour"],
}
