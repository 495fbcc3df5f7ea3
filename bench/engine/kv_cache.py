"""``python -m bench.engine.kv_cache``: measure the memory savings and accuracy of an 8-bit KV cache.

logits     the logit error with the 8-bit cache, compared with the error of computing in bf16, the
           most common precision for serving
answers    the tiny model's greedy outputs for the evaluation questions: how many are the same with either
           cache, and how many are correct
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.core.kv_cache_size import KV_CACHE_DTYPES
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.attention.kv_cache import KVCacheSpec

from bench.checkpoint import write_checkpoint
from bench.engine.logits import (
    RANDOM,
    TINY,
    Example,
    errors,
    example_of,
    load,
    logits_of,
    random_example,
    tokenizer,
)
from bench.record import ROOT, write_record

sys.path.append(str(ROOT / "tools"))  # for the imports from ``tiny``
from tiny.evaluation import Question, Result, evaluation_questions


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.kv_cache", description=__doc__)
    parser.add_argument(
        "--questions", type=int, default=200, help="number of questions used to compare logits (default 200)"
    )
    parser.add_argument(
        "--exam", type=int, default=600, help="number of questions used to compare outputs (default 600)"
    )
    parser.add_argument(
        "--prompts", type=int, default=8, help="number of prompts for each random model (default 8)"
    )
    parser.add_argument("--threads", type=int, default=1, help="number of torch threads (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    questions = list(evaluation_questions(-(-max(args.exam, args.questions) // 3)))
    logits = {"tiny-llava": compare_logits(TINY, [example_of(q) for q in questions[: args.questions]])}
    for name, shape in RANDOM.items():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder) / "model", shape, dtype="float32")
            prompts = [random_example(seed, shape.vocabulary) for seed in range(args.prompts)]
            logits[name] = compare_logits(Path(folder) / "model", prompts)
    results = {
        "bytes_per_token": sizes(),
        "logits": logits,
        "answers": compare_outputs(questions[: args.exam]),
    }
    print(write_record("kv-cache", results, settings=vars(args)))


def sizes() -> dict[str, int]:
    """Return the KV cache size of LLaVA-1.5-7B, in bytes per token."""
    return {
        name: KVCacheSpec(1, 1, 32, 32, 128, torch.float16, is_int8=name == "int8").bytes_per_block
        for name in KV_CACHE_DTYPES
    }


def compare_logits(folder: Path, examples: list[Example]) -> dict[str, Any]:
    """Compare fp32 logits with the logits from an 8-bit cache and, as a reference, with bf16 logits."""
    model, rounded = load(folder, "fp32"), load(folder, "bf16")
    exact = [logits_of(model, "auto", example) for example in examples]
    others = {
        "int8 cache": [logits_of(model, "int8", example) for example in examples],
        "bf16, exact cache": [logits_of(rounded, "auto", example) for example in examples],
    }
    differences = errors(exact, others)
    print(folder.name, differences, flush=True)
    return differences


def compare_outputs(questions: list[Question]) -> dict[str, Any]:
    by_dtype = {dtype: list(generate(dtype, questions)) for dtype in KV_CACHE_DTYPES}
    pairs = list(zip(*by_dtype.values(), strict=True))
    results: dict[str, Any] = {
        "asked": len(questions),
        "same": sum(first == second for first, second in pairs),
    }
    for dtype, outputs in by_dtype.items():
        texts = [tokenizer().decode(token_ids, skip_special_tokens=True).strip() for token_ids in outputs]
        results[f"right, {dtype}"] = sum(
            Result(*pair).is_right for pair in zip(questions, texts, strict=True)
        )
    print(results, flush=True)
    return results


def generate(kv_cache_dtype: str, questions: list[Question]) -> Iterator[list[int]]:
    config = EngineConfig(
        TINY, precision="fp32", device="cpu", kv_cache_dtype=kv_cache_dtype, kv_cache_bytes=64 << 20
    )
    engine, info = build_engine(config)
    for start in range(0, len(questions), 16):
        batch = questions[start : start + 16]
        for index, question in enumerate(batch):
            engine.add(_sequence(str(index), example_of(question), info.tokens_per_tile))
        outputs = run(engine)
        yield from (outputs[str(index)] for index in range(len(batch)))


def run(engine: Engine) -> dict[str, list[int]]:
    outputs: dict[str, list[int]] = {}
    while engine.num_sequences:
        for output in engine.step():
            if output.token_id is not None:
                outputs.setdefault(output.seq_id, []).append(output.token_id)
    return outputs


def _sequence(name: str, example: Example, length: int) -> Sequence:
    spans = [
        ImageSpan(start, length, str(hash(pixels)))
        for start, pixels in zip(example.starts, example.pixels, strict=True)
    ]
    return Sequence(
        seq_id=name,
        prompt_ids=example.token_ids[: example.first + 1],
        images=spans,
        pixels=list(example.pixels),
        max_new_tokens=96,
    )


if __name__ == "__main__":
    main()
