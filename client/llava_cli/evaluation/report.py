"""The table of scores next to the published ones, and the page of wrong responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from rich.table import Table

from llava_cli.evaluation.benchmarks import Benchmark
from llava_cli.evaluation.job import Outcome
from llava_cli.evaluation.lmms_harness.items import is_wrong
from llava_cli.image_page import Figure, Paragraph, write_page
from llava_cli.printing import sanitize

__all__ = ["score_table", "write_wrong_page"]


def score_table(outcome: Outcome) -> Table:
    """Return the table. Tasks that are not in the paper have one row per metric, on lmms-eval's scale."""
    table = Table("Benchmark", title=sanitize(outcome.model), title_justify="left")
    for heading in ("Score", "LLaVA-1.5-7B", "LLaVA-1.5-13B", "Items"):
        table.add_column(heading, justify="right")
    table.add_column("Note")
    for benchmark in outcome.benchmarks:
        published = [f"{score:.1f}" for score in benchmark.paper]
        count = sum(outcome.counts[task] for task in benchmark.tasks)
        table.add_row(benchmark.title, _score(benchmark, outcome), *published, f"{count:,}", benchmark.note)
    known = {task for benchmark in outcome.benchmarks for task in benchmark.tasks}
    for task, scores in outcome.scores.items():
        for metric, score in scores.items() if task not in known else ():
            num_items = f"{outcome.counts[task]:,}" if task in outcome.counts else ""  # a group has none
            table.add_row(f"{task}: {metric}", f"{score:.4g}", "", "", num_items)
    return table


def _score(benchmark: Benchmark, outcome: Outcome) -> str:
    scores = [outcome.scores[task].get(benchmark.metric) for task in benchmark.tasks]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return "none"
    return f"{sum(known) / len(known) * benchmark.scale:.1f}"


def write_wrong_page(outcome: Outcome, output: Path) -> Path:
    """Write ``wrong.html``, which shows the images of wrong responses, and return its path."""
    path = output / "wrong.html"
    items = [(task, item) for task in outcome.counts for item in _wrong_items(output, task)]
    total = sum(outcome.counts.values())
    summary = f"{outcome.model}: {len(items):,} of {total:,} items have a score below 0.5."
    shown = [(task, item) for task, item in items if item["images"]]
    write_page(path, "Wrong responses", summary, (_figure(task, item) for task, item in shown))
    return path


def _wrong_items(output: Path, task: str) -> Iterator[dict[str, object]]:
    with (output / "items" / f"{task}.jsonl").open(encoding="utf-8") as file:
        yield from (item for item in map(json.loads, file) if is_wrong(item))


def _figure(task: str, item: dict[str, object]) -> Figure:
    images = item["images"]
    assert isinstance(images, list)  # written by lmms_harness.items
    lines = [
        Paragraph(str(item["prompt"])),
        Paragraph(f"Response: {item['response']}", "error"),
        Paragraph(f"Expected: {item['target']}"),
    ]
    return Figure([quote(image) for image in images], f"{task} {item['id']}", lines)
