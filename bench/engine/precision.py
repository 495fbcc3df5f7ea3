"""``python -m bench.engine.precision``: measure the logit error of quantized models relative to fp32.

For the bundled model, logits are compared at each token of the correct answers to the evaluation questions.
For models with random weights and LLaVA-1.5's head size, logits are compared on random prompts. To measure
how many answers are correct in a given precision, run ``make eval`` against a server in that precision.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.checkpoint import write_checkpoint
from bench.engine.logits import RANDOM, TINY, Example, errors, example_of, load, logits_of, random_example
from bench.record import ROOT, write_record

sys.path.append(str(ROOT / "tools"))  # for the imports from ``tiny``
from tiny.evaluation import evaluation_questions

PRECISIONS = ("bf16", "int8", "int4", "w8a8", "fp8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.precision", description=__doc__)
    parser.add_argument("--questions", type=int, default=200, help="number of questions (default 200)")
    parser.add_argument(
        "--prompts", type=int, default=8, help="number of prompts for each random model (default 8)"
    )
    args = parser.parse_args()
    questions = list(evaluation_questions(-(-args.questions // 3)))[: args.questions]
    results = {"tiny-llava": compare(TINY, [example_of(question) for question in questions])}
    for name, shape in RANDOM.items():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder) / "model", shape, dtype="float32")
            prompts = [random_example(seed, shape.vocabulary) for seed in range(args.prompts)]
            results[name] = compare(Path(folder) / "model", prompts)
    print(write_record("precision", results, settings=vars(args)))


def compare(folder: Path, examples: list[Example]) -> dict[str, Any]:
    exact = logits_in("fp32", folder, examples)
    differences = errors(exact, {name: logits_in(name, folder, examples) for name in PRECISIONS})
    print(folder.name, differences, flush=True)
    return differences


def logits_in(precision: str, folder: Path, examples: list[Example]) -> list[torch.Tensor]:
    model = load(folder, precision)
    return [logits_of(model, "auto", example) for example in examples]


if __name__ == "__main__":
    main()
