"""What to evaluate: a JSON file that ``llava-serve eval`` writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Plan", "TaskPlan", "read_plan", "write_plan"]


@dataclass(frozen=True)
class TaskPlan:
    """The settings of one of the paper's benchmarks, which replace those of lmms-eval.

    ``prompt_settings`` and ``generation`` replace values in the task's ``lmms_eval_specific_kwargs`` and
    ``generation_kwargs``. ``aggregation`` maps metrics to functions (``module:function``). Each prompt must
    contain all ``sentences``. ``columns`` is the expected format of the dataset (see ``dataset_format``).
    """

    prompt_settings: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    aggregation: dict[str, str] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """``tasks`` are names of lmms-eval, ``settings`` has those of the paper's benchmarks among them.

    ``data`` is the folder with local datasets, if any. ``limit`` is the maximum number of items per task.
    ``max_images`` is the number of items per task whose images are saved for the page of wrong responses.
    """

    tasks: list[str]
    settings: dict[str, TaskPlan]
    url: str
    concurrency: int
    output: str
    data: str | None = None
    limit: int | None = None
    max_images: int = 200


def read_plan(path: str) -> Plan:
    values = json.loads(Path(path).read_text("utf-8"))
    settings = {name: TaskPlan(**each) for name, each in values.pop("settings").items()}
    return Plan(settings=settings, **values)


def write_plan(plan: Plan, path: Path) -> None:
    path.touch(mode=0o600)  # the URL contains the relay's token
    path.write_text(json.dumps(asdict(plan), ensure_ascii=False, indent=1), "utf-8")
