"""The tasks of lmms-eval, with the settings of the paper for the paper's benchmarks."""

from __future__ import annotations

import copy
import difflib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .dataset_format import FormatError, check_file
from .datasets_source import DatasetsSource
from .events import Events
from .plan import Plan, TaskPlan

__all__ = ["check_datasets", "check_names", "leaf_tasks", "task_manager"]


def task_manager(plan: Plan) -> Any:
    """Return a TaskManager of lmms-eval that applies the plan's settings and remembers loaded tasks."""
    from lmms_eval.tasks import TaskManager

    class Tasks(TaskManager):  # type: ignore[misc]
        def __init__(self) -> None:
            self.loaded: dict[str, Any] = {}
            super().__init__("WARNING", model_name="openai")

        def _get_config(self, name: str) -> dict[str, Any]:
            config: dict[str, Any] = super()._get_config(name)
            return _apply(config, plan.settings[name]) if name in plan.settings else config

        def load_task_or_group(self, *args: Any, **options: Any) -> dict[str, Any]:
            self.loaded = super().load_task_or_group(*args, **options)
            return self.loaded

    return Tasks()


def _apply(config: dict[str, Any], settings: TaskPlan) -> dict[str, Any]:
    config = copy.copy(config)
    if settings.prompt_settings:
        kwargs = copy.deepcopy(config["lmms_eval_specific_kwargs"])
        kwargs["default"].update(settings.prompt_settings)
        config["lmms_eval_specific_kwargs"] = kwargs
    if settings.generation:
        config["generation_kwargs"] = dict(settings.generation)
    if settings.aggregation:
        config["metric_list"] = [
            {**metric, "aggregation": _function(settings.aggregation[metric["metric"]])}
            for metric in config["metric_list"]
            if metric["metric"] in settings.aggregation
        ]
    return config


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def check_names(manager: Any, names: list[str], events: Events) -> None:
    """End with an error if lmms-eval has no task, group or tag with one of the names."""
    for name in names:
        if name not in manager.all_tasks:
            similar = difflib.get_close_matches(name, manager.all_tasks, 5)
            hint = f" Similar names are {', '.join(similar)}." if similar else ""
            events.fail(f"lmms-eval has no task {name!r}.{hint} `llava-serve eval --list` lists all tasks.")


def check_datasets(manager: Any, plan: Plan, source: DatasetsSource, events: Events) -> None:
    """End with an error if a local dataset of the paper's benchmarks does not have the expected format."""
    for name, settings in plan.settings.items():
        config = manager._get_config(name)
        dataset, split = config["dataset_path"], config["test_split"].strip()
        files = source.files(dataset, config.get("dataset_name"))
        if not files:
            continue
        if split not in files:
            place = str(Path(next(iter(files.values()))[0]).parent)
            events.fail(
                f"The dataset of {name} has no split {split!r}; {place!r} has {', '.join(files)}. "
                f"{source.missing(dataset, config.get('dataset_name'), split)}"
            )
        try:
            for file in files[split]:
                check_file(file, settings.columns)
        except FormatError as error:
            events.fail(str(error))


def leaf_tasks(loaded: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and tasks in a dictionary of tasks and groups."""
    for name, task in loaded.items():
        if isinstance(task, Mapping):
            yield from leaf_tasks(task)
        else:
            yield str(name), task
