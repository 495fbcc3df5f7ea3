"""``python -m bench.kv_cache``: what keys and values in 8 bit save, and what they cost in answers.

    logits     of the same tokens, in one piece, with the exact cache and with another; the error is compared
               with that of computing in bf16, which is what most people serve anyway
    answers    greedy ones of the tiny model to the exam's questions: how many are the same to the token, and
               how many are right

Random weights have neither the outliers nor the sure decisions of trained ones: their logits bound nothing,
they only show the error beside bf16's at heads of LLaVA-1.5's size and at two depths.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.cache_size import KV_CACHE_DTYPES
from llava_worker.engine.engine import Engine
from llava_worker.engine.load import load_engine
from llava_worker.model.attention import PackedRows
from llava_worker.model.config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.precision import choose_precision
from llava_worker.model.sdpa import SdpaBackend
from llava_worker.model.weights import load_weights
from tokenizers import Tokenizer
from torch import Tensor

from bench.checkpoint import write_checkpoint
from bench.record import ROOT, write_record
from bench.shape import Shape

sys.path.append(str(ROOT / "tools"))  # the tiny model's scenes and exam
from tiny.conversations import SYSTEM
from tiny.drawing import draw, fit
from tiny.exam import Question, Result, questions
from tiny.packs import prompt_ids
from tiny.tokenizer import IMAGE

TINY = ROOT / "worker" / "llava_worker" / "tiny"
CPU = torch.device("cpu")
NUM_SEEN, NUM_JUDGED = 576, 64  # tokens of a random prompt: before those whose logits are compared, and those
_SMALL = {"vocabulary": 4096, "context": 1024, "vision_hidden": 64, "vision_layers": 2}
_SMALL |= {"vision_heads": 1, "vision_intermediate": 128, "image_side": 28, "patch": 14}
# LLaVA-1.5's heads of 128, at a width and a depth that fit beside other work.
RANDOM = {
    "random, 8 layers of 1024": Shape(hidden=1024, layers=8, heads=8, intermediate=2752, **_SMALL),
    "random, 32 layers of 512": Shape(hidden=512, layers=32, heads=4, intermediate=1376, **_SMALL),
}


@dataclass(frozen=True)
class Example:
    """Tokens with pictures, of which the logits after ``first`` and all later ones are compared."""

    token_ids: list[int]
    first: int
    pixels: list[bytes]
    starts: list[int]  # where each picture's tokens begin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kv_cache", description=__doc__)
    parser.add_argument("--questions", type=int, default=200, help="of the exam, for the logits")
    parser.add_argument("--exam", type=int, default=600, help="questions that are answered")
    parser.add_argument("--prompts", type=int, default=8, help="of the random models")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    exam = list(questions(-(-max(given.exam, given.questions) // 3)))
    logits = {"tiny-llava": compare_logits(TINY, [_of_exam(q) for q in exam[: given.questions]])}
    for name, shape in RANDOM.items():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder) / "model", shape, dtype="float32")
            prompts = [_at_random(seed, shape.vocabulary) for seed in range(given.prompts)]
            logits[name] = compare_logits(Path(folder) / "model", prompts)
    results = {"bytes_per_token": sizes(), "logits": logits, "answers": compare_answers(exam[: given.exam])}
    print(write_record("kv-cache", results, settings=vars(given)))


def sizes() -> dict[str, int]:
    """Of LLaVA-1.5-7B's cache, a token."""
    return {
        name: kind.bytes_per_block(1, num_layers=32, num_heads=32, head_dim=128, dtype=torch.float16)
        for name, kind in KV_CACHE_DTYPES.items()
    }


def compare_logits(folder: Path, examples: list[Example]) -> dict[str, Any]:
    """Of fp32 with the exact cache against 8 bit, and against bf16 as a measure of what is small."""
    model, rounded = load(folder, "fp32"), load(folder, "bf16")
    exact = [logits_of(model, "auto", example) for example in examples]
    others = {
        "int8 cache": [logits_of(model, "int8", example) for example in examples],
        "bf16, exact cache": [logits_of(rounded, "auto", example) for example in examples],
    }
    found: dict[str, Any] = {"positions": sum(map(len, exact)), "std": float(torch.cat(exact).std())}
    for name, logits in others.items():
        errors = (torch.cat(logits) - torch.cat(exact)).abs()
        same = torch.cat(logits).argmax(-1) == torch.cat(exact).argmax(-1)
        found[name] = {
            "max": float(errors.max()),
            "mean": float(errors.mean()),
            "same_choice": float(same.float().mean()),
        }
    print(folder.name, found, flush=True)
    return found


def load(folder: Path, precision: str) -> Llava:
    number_format = choose_precision(precision, CPU)
    model = Llava(read_config(folder), read_image_config(folder), precision=number_format, device=CPU)
    load_weights(model, folder)
    return model


@torch.inference_mode()
def logits_of(model: Llava, kind: str, example: Example) -> Tensor:  # fp32 [positions, vocab]
    text, length = model.config.text_config, len(example.token_ids)
    kept = KV_CACHE_DTYPES[kind](
        length,
        1,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        dtype=model.dtype,
        device=CPU,
    )
    slots = torch.arange(length)
    rows = PackedRows((length,), (length,), 0, slots[None], slots)
    x = model.embed(torch.tensor(example.token_ids))
    side = model.config.picture_layout().side
    for pixels, start in zip(example.pixels, example.starts, strict=True):
        tiles = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, side, side, 3)
        features = model.encode(tiles)[0]
        x[start : start + len(features)] = features
    hidden = model(x, slots, SdpaBackend().plan(rows, kept))
    return model.logits(hidden[example.first :])


def compare_answers(exam: list[Question]) -> dict[str, Any]:
    answers = {kind: list(answer_all(kind, exam)) for kind in KV_CACHE_DTYPES}
    pairs = list(zip(*answers.values(), strict=True))
    results: dict[str, Any] = {"asked": len(exam), "same": sum(first == second for first, second in pairs)}
    for kind, given in answers.items():
        told = [_tokenizer().decode(token_ids, skip_special_tokens=True).strip() for token_ids in given]
        results[f"right, {kind}"] = sum(Result(*pair).is_right for pair in zip(exam, told, strict=True))
    print(results, flush=True)
    return results


def answer_all(kind: str, exam: list[Question]) -> Iterator[list[int]]:
    engine, info = load_engine(
        TINY, precision="fp32", device="cpu", kv_cache_dtype=kind, kv_cache_bytes=64 << 20
    )
    for start in range(0, len(exam), 16):
        part = exam[start : start + 16]
        for index, question in enumerate(part):
            engine.add(_sequence(str(index), _of_exam(question), info.tokens_per_tile))
        answers = run(engine)
        yield from (answers[str(index)] for index in range(len(part)))


def run(engine: Engine) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    while engine.num_sequences:
        for output in engine.step():
            if output.token_id is not None:
                answers.setdefault(output.seq_id, []).append(output.token_id)
    return answers


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


def _of_exam(question: Question) -> Example:
    """The prompt with the right answer after it."""
    system = SYSTEM if question.system is None else question.system
    ids = prompt_ids(system, question.turns, len(question.scenes))
    starts = [i for i, token in enumerate(ids) if token == IMAGE and (i == 0 or ids[i - 1] != IMAGE)]
    answer = _tokenizer().encode(question.truth, add_special_tokens=False).ids
    pixels = [fit(draw(scene)).tobytes() for scene in question.scenes]
    return Example(ids + answer, len(ids) - 1, pixels, starts[: len(pixels)])


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def _at_random(seed: int, vocabulary: int) -> Example:
    rng = random.Random(seed)
    ids = [1, *rng.choices(range(300, vocabulary - 100), k=NUM_SEEN + NUM_JUDGED - 1)]
    return Example(ids, NUM_SEEN, [], [])


if __name__ == "__main__":
    main()
