"""The twelve benchmarks of the LLaVA-1.5 paper: prompts, settings and published scores.

Sources: "Improved Baselines with Visual Instruction Tuning" (arXiv 2310.03744), tables 3 and 4 for the scores
and table 8 for the sentences, and ``docs/MODEL_ZOO.md`` of the original repository, which has the scores of
the published checkpoints (they differ from the first version of the paper for LLaVA-Bench and MM-Vet). The
original's evaluation scripts generate greedily, with at most 128 tokens (``model_vqa_loader.py``) or 1,024
tokens (all others). Outputs end only with the end-of-sequence token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llava_cli.evaluation.lmms_harness.plan import TaskPlan

__all__ = ["BENCHMARKS", "PAPER", "Benchmark", "find_benchmark"]

PAPER = "paper"  # the name for all of the benchmarks

_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_LETTER_CN = "请直接回答选项字母。"
_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
_STATIC = "lmms_eval.tasks.mmbench.en_utils:mmbench_aggregate_dev_results_static"
_YES_NO = ["yes", "no"]
_OPTIONS = ["A", "B", "C", "D"]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper.

    The score is the mean of ``metric`` over ``tasks`` of lmms-eval, multiplied by ``scale``. ``paper`` has
    the published scores of the models with 7B and 13B parameters. ``note`` states what differs from the
    published evaluation.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    metric: str
    paper: tuple[float, float]
    columns: dict[str, Any]
    scale: float = 100.0
    sentences: tuple[str, ...] = ()
    max_tokens: int = 128
    prompt_settings: dict[str, Any] = field(default_factory=dict)
    aggregation: dict[str, str] = field(default_factory=dict)
    needs_judge: bool = False
    note: str = ""

    def plan(self) -> TaskPlan:
        """Return the settings for each of the tasks."""
        return TaskPlan(
            prompt_settings=self.prompt_settings,
            generation={"max_new_tokens": self.max_tokens, "temperature": 0, "do_sample": False},
            aggregation=self.aggregation,
            sentences=list(self.sentences),
            columns=self.columns,
        )


_QUESTION = {"question": "text", "image": "image"}
_MMBENCH = {
    "index": "number",
    "question": "text",
    "hint": "optional",
    "answer": _OPTIONS,
    "A": "text",
    "B": "text",
    "C": "optional",
    "D": "optional",
    "category": "text",
    "L2-category": "optional",
    "source": "optional",
    "split": "optional",
    "image": "image",
}


def _mmbench(name: str, title: str, task: str, paper: tuple[float, float], sentence: str) -> Benchmark:
    return Benchmark(
        name,
        title,
        (task,),
        "gpt_eval_score",
        paper,
        _MMBENCH,
        scale=1.0,
        sentences=(sentence,),
        max_tokens=1024,
        prompt_settings={"post_prompt": sentence},
        aggregation={"gpt_eval_score": _STATIC},
        note="options matched by rules, not by a judge",
    )


BENCHMARKS = (
    Benchmark(
        "vqav2",
        "VQAv2",
        ("vqav2_val",),
        "exact_match",
        (78.5, 80.0),
        {**_QUESTION, "question_id": "value", "answers": "answers"},
        sentences=(_SHORT,),
        note="published: test-dev; here: val",
    ),
    Benchmark(
        "gqa",
        "GQA",
        ("gqa",),
        "exact_match",
        (62.0, 63.3),
        {"question": "text", "answer": "text", "imageId": "value"},
        sentences=(_SHORT,),
    ),
    Benchmark(
        "vizwiz",
        "VizWiz",
        ("vizwiz_vqa_val",),
        "exact_match",
        (50.0, 53.6),
        {**_QUESTION, "question_id": "value", "answers": "texts"},
        sentences=(_UNANSWERABLE, _SHORT),
        note="published: test; here: val",
    ),
    Benchmark(
        "scienceqa",
        "ScienceQA-IMG",
        ("scienceqa_img",),
        "exact_match",
        (66.8, 71.6),
        {**_QUESTION, "hint": "optional", "choices": "texts", "answer": "number"},
        sentences=(_LETTER,),
        max_tokens=1024,
    ),
    Benchmark(
        "textvqa",
        "TextVQA",
        ("textvqa_val",),
        "exact_match",
        (58.2, 61.3),
        {**_QUESTION, "question_id": "value", "answers": "texts", "ocr_tokens": "optional"},
        sentences=("Reference OCR token:", _SHORT),
        prompt_settings={"ocr": True},
    ),
    Benchmark(
        "pope",
        "POPE",
        ("pope_adv", "pope_pop", "pope_random"),
        "pope_f1_score",
        (85.9, 85.9),
        {**_QUESTION, "question_id": "value", "answer": _YES_NO},
        sentences=(_SHORT,),
        note="mean F1 of the three splits",
    ),
    Benchmark(
        "mme",
        "MME",
        ("mme",),
        "mme_perception_score",
        (1510.7, 1531.3),
        {**_QUESTION, "question_id": "value", "category": "text", "answer": _YES_NO},
        scale=1.0,
        sentences=(_SHORT,),
        note="perception",
    ),
    _mmbench("mmbench", "MMBench", "mmbench_en_dev", (64.3, 67.7), _LETTER),
    _mmbench("mmbench-cn", "MMBench-CN", "mmbench_cn_dev", (58.3, 63.6), _LETTER_CN),
    Benchmark(
        "seedbench",
        "SEED-Bench",
        ("seedbench",),
        "seed_all",
        (58.6, 61.6),
        {
            "question": "text",
            "answer": _OPTIONS,
            "data_type": "text",
            "question_id": "value",
            **{f"choice_{letter}": "text" for letter in "abcd"},
            "image": "image",
        },
        sentences=(_LETTER,),
    ),
    Benchmark(
        "llava-bench",
        "LLaVA-Bench (Wild)",
        ("llava_in_the_wild",),
        "gpt_eval_llava_all",
        (65.4, 72.5),
        {
            **_QUESTION,
            "question_id": "value",
            "category": "text",
            "gpt_answer": "text",
            "caption": "optional",
        },
        scale=1.0,
        max_tokens=1024,
        needs_judge=True,
        note="published: judged by gpt-4-0314",
    ),
    Benchmark(
        "mm-vet",
        "MM-Vet",
        ("mmvet",),
        "gpt_eval_score",
        (31.1, 36.1),
        {**_QUESTION, "question_id": "value", "answer": "text", "capability": "text"},
        scale=1.0,
        max_tokens=1024,
        prompt_settings={"pre_prompt": ""},
        needs_judge=True,
        note="published: judged by gpt-4-0613",
    ),
)


def find_benchmark(name: str) -> Benchmark | None:
    return next((each for each in BENCHMARKS if each.name == name), None)
