"""Prompts and settings that differ from the paper's are reported before any request is sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from llava_cli.evaluation.benchmarks import BENCHMARKS, Benchmark, find_benchmark
from llava_cli.evaluation.lmms_harness.plan import Plan
from llava_cli.evaluation.lmms_harness.run import check_prompts

from tests.client.cli.evaluation.transformers_harness import NoEvents

SHORT = "Answer the question using a single word or phrase."
SETTINGS = {"max_new_tokens": 128, "temperature": 0.0, "do_sample": False, "until": ["\n\n"]}


def check(benchmark: Benchmark, prompt: str, **settings: Any) -> None:
    plans = {task: benchmark.plan() for task in benchmark.tasks}
    plan = Plan(tasks=list(plans), settings=plans, url="", concurrency=1, output="")
    # The attributes of lmms-eval's requests that are used.
    requests = [
        SimpleNamespace(task_name=task, doc_id=7, args=(prompt, None, {**SETTINGS, **settings}))
        for task in (*benchmark.tasks, "docvqa_val")
    ]
    check_prompts(plan, requests, NoEvents())  # type: ignore[arg-type]


def named(name: str) -> Benchmark:
    benchmark = find_benchmark(name)
    assert benchmark is not None
    return benchmark


def test_prompts_with_the_sentence_of_the_paper_pass() -> None:
    check(named("pope"), f"Is there a cat?\n{SHORT}")


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("pope", "Is there a cat?"),
        ("mmbench", f"Which one?\n{SHORT}"),
        ("mmbench-cn", "哪个?\nAnswer with the option's letter from the given choices directly."),
        ("textvqa", f"What is written?\n{SHORT}"),  # without the reference OCR tokens
        ("vizwiz", f"What is this?\n{SHORT}"),  # without "Unanswerable"
    ],
)
def test_a_prompt_without_the_sentence_is_reported(name: str, prompt: str) -> None:
    with pytest.raises(SystemExit, match="item 7: the prompt does not contain"):
        check(named(name), prompt)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.2}, {"do_sample": True}, {"max_new_tokens": 16}, {"temperature": None}]
)
def test_other_generation_settings_are_reported(settings: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="item 7: the generation settings are"):
        check(named("pope"), SHORT, **settings)


def test_all_benchmarks_except_those_with_a_judge_require_a_sentence() -> None:
    assert {each.name for each in BENCHMARKS if not each.sentences} == {"llava-bench", "mm-vet"}
    assert {each.name for each in BENCHMARKS if each.needs_judge} == {"llava-bench", "mm-vet"}
