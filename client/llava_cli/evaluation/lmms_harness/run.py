"""Runs lmms-eval's tasks and writes the results and the items."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .datasets_source import DatasetsSource
from .events import Events, exit_with_parent
from .items import write_items
from .plan import Plan
from .tasks import check_datasets, check_names, leaf_tasks, task_manager

__all__ = ["check_prompts", "evaluate", "run"]


def run(plan: Plan) -> None:
    """Evaluate the server at ``plan.url``."""
    exit_with_parent()
    events = Events(os.path.join(plan.output, "lmms-eval.log"))
    evaluate(plan, events, lambda: _served_model(plan, events))


def evaluate(plan: Plan, events: Events, make_model: Any) -> None:
    """Evaluate a model of lmms-eval and write ``results.json`` and ``items/TASK.jsonl``."""
    source = DatasetsSource(plan.data, events)
    source.install()
    from lmms_eval.evaluator import simple_evaluate

    manager = task_manager(plan)
    if plan.tasks == ["list"]:
        events.send("tasks", names=manager.all_tasks)
        return
    check_names(manager, plan.tasks, events)
    check_datasets(manager, plan, source, events)
    results = simple_evaluate(
        model=make_model(),
        tasks=plan.tasks,
        limit=plan.limit,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        process_docs_parallel=plan.concurrency,
        cli_args=argparse.Namespace(output_path=plan.output, process_with_media=False, reasoning_tags=None),
    )
    tasks = dict(leaf_tasks(manager.loaded))
    for name, samples in results.pop("samples").items():
        write_items(name, tasks[name], samples, Path(plan.output), plan.max_images)
    scores = {name: _scores(values) for name, values in results["results"].items()}
    counts = {name: len(task.instances) for name, task in tasks.items()}
    content = json.dumps({"scores": scores, "counts": counts}, indent=1)
    Path(plan.output, "results.json").write_text(content, "utf-8")
    events.send("done")


def _scores(values: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a task. lmms-eval's names have the name of a filter as a suffix."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name.partition(",")[0]: value for name, value in numbers.items() if "_stderr" not in name}


def _served_model(plan: Plan, events: Events) -> Any:
    """Return lmms-eval's model for servers with OpenAI's API."""
    from lmms_eval.models.chat.openai import OpenAICompatible

    class ServedModel(OpenAICompatible):  # type: ignore[misc]
        def generate_until(self, requests: Sequence[Any]) -> Any:
            check_prompts(plan, requests, events)
            events.send("requests", count=len(requests))
            return super().generate_until(requests)

    # The command sets the name of the model and retries failed requests.
    return ServedModel(
        model_version="served",
        base_url=plan.url,
        api_key="none",
        num_concurrent=plan.concurrency,
        max_retries=1,
        httpx_trust_env=False,
    )


def check_prompts(plan: Plan, requests: Sequence[Any], events: Events) -> None:
    """End with an error if a prompt lacks a sentence of the paper or if a response would be sampled."""
    for request in requests:
        settings = plan.settings.get(request.task_name)
        if settings is None:
            continue
        prompt, _, generation = request.args[:3]
        item = f"{request.task_name}, item {request.doc_id}"
        for sentence in settings.sentences:
            if sentence not in prompt:
                events.fail(f"{item}: the prompt does not contain {sentence!r}: {prompt!r:.500}.")
        # lmms-eval adds its own stop strings ("until"), which its model for OpenAI's API does not send.
        if any(generation.get(name) != value for name, value in settings.generation.items()):
            events.fail(f"{item}: the generation settings are {generation}, not {settings.generation}.")
