"""Compare logits across data types, for the bundled model and for models with random weights.

Random weights have no outliers and yield almost uniform token probabilities. The errors of models with random
weights are therefore not representative of trained models. They only show how data types compare with each
other at LLaVA-1.5's head size and two model depths.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision, precisions_on
from tokenizers import Tokenizer
from torch import Tensor

from bench.record import ROOT
from bench.shape import Shape

sys.path.append(str(ROOT / "tools"))  # for the imports from ``tiny``
from tiny.conversations import SYSTEM
from tiny.drawing import draw, preprocess
from tiny.evaluation import Question
from tiny.packing import prompt_ids
from tiny.tokenizer import IMAGE

__all__ = [
    "RANDOM",
    "TINY",
    "Example",
    "random_example",
    "errors",
    "load",
    "logits_of",
    "example_of",
    "tokenizer",
]

TINY = ROOT / "worker" / "llava_worker" / "tiny"
CPU = torch.device("cpu")
NUM_CONTEXT, NUM_COMPARED = 576, 64  # numbers of tokens in a random prompt
_SMALL = {"vocabulary": 4096, "context": 1024, "vision_hidden": 64, "vision_layers": 2}
_SMALL |= {"vision_heads": 1, "vision_intermediate": 128, "image_side": 28, "patch": 14}
# The head size is 128, as in LLaVA-1.5. The models are small enough for a shared machine.
RANDOM = {
    "random, 8 layers of 1024": Shape(hidden=1024, layers=8, heads=8, intermediate=2752, **_SMALL),
    "random, 32 layers of 512": Shape(hidden=512, layers=32, heads=4, intermediate=1376, **_SMALL),
}


@dataclass(frozen=True)
class Example:
    """A prompt with its images. Logits are compared at position ``first`` and all later positions."""

    token_ids: list[int]
    first: int
    pixels: list[bytes]
    starts: list[int]  # position of the first token of each image


def load(folder: Path, precision: str) -> Llava:
    # Formats that require a GPU are selected as if on a GPU. Their matrix products also run on a CPU.
    device = CPU if precision in precisions_on(CPU) else torch.device("cuda:0")
    number_format = choose_precision(precision, device)
    model = Llava(read_config(folder), read_image_config(folder), precision=number_format, device=CPU)
    load_weights(model, folder)
    return model


@torch.inference_mode()
def logits_of(model: Llava, kind: str, example: Example) -> Tensor:  # fp32 [positions, vocab]
    length = len(example.token_ids)
    spec = KVCacheSpec.for_model(
        model.config.text_config,
        num_blocks=length,
        block_size=1,
        dtype=model.dtype,
        is_int8=kind == "int8",
    )
    cache = KVCache(spec, CPU)
    slots = torch.arange(length)
    rows = AttentionMetadata((length,), (length,), 0, slots[None], slots)
    x = model.embed(torch.tensor(example.token_ids))
    side = model.config.image_layout().side
    for pixels, start in zip(example.pixels, example.starts, strict=True):
        tiles = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, side, side, 3)
        features = model.encode(tiles)[0]
        x[start : start + len(features)] = features
    hidden = model(x, slots, SdpaBackend().plan(rows, cache))
    return model.logits(hidden[example.first :])


def errors(exact: list[Tensor], others: dict[str, list[Tensor]]) -> dict[str, Any]:
    """Return the maximum and mean error compared with ``exact``, and how often the top token matches."""
    reference = torch.cat(exact)
    results: dict[str, Any] = {"positions": len(reference), "std": float(reference.std())}
    for name, logits in others.items():
        differences = (torch.cat(logits) - reference).abs()
        same = torch.cat(logits).argmax(-1) == reference.argmax(-1)
        results[name] = {
            "max": float(differences.max()),
            "mean": float(differences.mean()),
            "same_choice": float(same.float().mean()),
        }
    return results


def example_of(question: Question) -> Example:
    """Return the prompt for a question, followed by the correct answer."""
    system = SYSTEM if question.system is None else question.system
    ids = prompt_ids(system, question.turns, len(question.scenes))
    starts = [i for i, token in enumerate(ids) if token == IMAGE and (i == 0 or ids[i - 1] != IMAGE)]
    answer = tokenizer().encode(question.truth, add_special_tokens=False).ids
    pixels = [preprocess(draw(scene)).tobytes() for scene in question.scenes]
    return Example(ids + answer, len(ids) - 1, pixels, starts[: len(pixels)])


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def random_example(seed: int, vocabulary: int) -> Example:
    rng = random.Random(seed)
    ids = [1, *rng.choices(range(300, vocabulary - 100), k=NUM_CONTEXT + NUM_COMPARED - 1)]
    return Example(ids, NUM_CONTEXT, [], [])
