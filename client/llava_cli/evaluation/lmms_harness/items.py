"""Writes the prompt and the response for each item of a task: ``items/TASK.jsonl``.

Each line has ``id``, ``prompt``, ``response``, ``target``, ``score`` and ``images``. The score is from 0 to
1, or null if lmms-eval computes it only for the whole task. For items with a score below 0.5, ``images`` has
the paths of the image files, relative to the output folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["is_wrong", "write_items"]


def write_items(
    name: str, task: Any, samples: Sequence[dict[str, Any]], output: Path, max_images: int
) -> None:
    """Write the items in the order of the dataset."""
    items = [_item(task, sample) for sample in samples]
    docs = task.test_docs() if task.has_test_docs() else task.validation_docs()
    for item in [item for item in items if is_wrong(item)][:max_images]:
        item["images"] = _save_images(
            task.doc_to_visual(docs[item["id"]]) or [], output, f"{name}-{item['id']}"
        )
    path = output / "items" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8")


def is_wrong(item: dict[str, Any]) -> bool:
    return item["score"] is not None and item["score"] < 0.5


def _item(task: Any, sample: dict[str, Any]) -> dict[str, Any]:
    prompt = next((each for each in sample["arguments"] if isinstance(each, str)), "")
    return {
        "id": sample["doc_id"],
        "prompt": prompt,
        "response": _text(sample["resps"]),
        "target": _text(sample["target"]),
        "score": _score(sample, task),
        "images": [],
    }


def _text(value: Any) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _score(sample: dict[str, Any], task: Any) -> float | None:
    values = (sample.get(metric) for metric in task.aggregation())
    return next((score for value in values if (score := _number(value)) is not None), None)


def _number(value: Any) -> float | None:
    """Return the score in the value of a metric, which can be a number or an object of the task."""
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("score"), int | float):
        return float(value["score"])
    answer, predicted = value.get("answer"), value.get("prediction", value.get("pred"))
    if isinstance(answer, str) and isinstance(predicted, str) and len(answer.strip()) == 1:
        return float(predicted.strip()[:1].lower() == answer.strip().lower())  # a letter
    return None


def _save_images(images: Sequence[Any], output: Path, name: str) -> list[str]:
    from PIL import Image

    folder = output / "images"
    folder.mkdir(exist_ok=True)
    paths = []
    for number, image in enumerate(images):
        if isinstance(image, Image.Image):
            path = folder / f"{name}-{number}.png"
            image.save(path)
            paths.append(path.relative_to(output).as_posix())
    return paths
