"""``python -m bench.engine.engine_alone``: benchmark the engine without a queue, server or network.

The difference between these results and those of a server is the overhead of all other components. The
serving benchmark runs this module in a separate process, so that it does not share memory with the
server.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from llava_cli.bench import percentile
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig

from bench.checkpoint import DEFAULT_FOLDER

__all__ = ["SequenceGenerator", "generate", "measure_engine"]

_TEXT_BEFORE, _TEXT_AFTER = 33, 28  # number of text tokens before and after the image
_FIRST_WORD_ID = 300  # all lower IDs are special tokens or byte tokens


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.engine_alone", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 8])
    args = parser.parse_args()
    results = measure_engine(
        args.folder, precision=args.precision, num_tokens=args.output_tokens, at_once=args.at_once
    )
    print(json.dumps(results))


def measure_engine(folder: Path, *, precision: str, num_tokens: int, at_once: list[int]) -> dict[str, Any]:
    """Measure latency and throughput at each concurrency level. Each sequence contains a different image."""
    began = time.perf_counter()
    engine, info = build_engine(
        EngineConfig(folder, precision=precision, device="cpu", use_speculation=False)
    )
    load_s = time.perf_counter() - began
    generator = SequenceGenerator(info.image_token_id, info.tokens_per_tile, info.image_side, info.vocab_size)
    generate(engine, [generator.sequence(2)])  # warm-up: the first kernel calls are slower
    batches = {
        str(num): generate(engine, [generator.sequence(num_tokens) for _ in range(num)]) for num in at_once
    }
    return {
        "precision": info.precision,
        "load_s": load_s,
        "num_threads": torch.get_num_threads(),
        "at_once": batches,
    }


class SequenceGenerator:
    """Generates distinct prompts of equal length from random words and random images."""

    def __init__(self, image_token_id: int, image_tokens: int, side: int, vocab_size: int) -> None:
        self._image = (image_token_id, image_tokens, side)
        self._words = range(min(_FIRST_WORD_ID, image_token_id // 2), min(image_token_id, vocab_size))
        self._rng = random.Random(0)
        self._num_sequences = 0

    def sequence(self, num_tokens: int) -> Sequence:
        token_id, length, side = self._image
        self._num_sequences += 1
        before = self._rng.choices(self._words, k=_TEXT_BEFORE)
        after = self._rng.choices(self._words, k=_TEXT_AFTER)
        name = f"bench-{self._num_sequences}"
        return Sequence(
            seq_id=name,
            prompt_ids=[1, *before, *([token_id] * length), *after],
            max_new_tokens=num_tokens,
            images=[ImageSpan(1 + _TEXT_BEFORE, length, digest=name)],
            pixels=[self._rng.randbytes(side * side * 3)],
            sampling=SamplingParams(seed=0, temperature=0.0, ignore_eos=True),
        )

    def text(self, num_tokens: int) -> Sequence:
        """Return a text-only prompt with as many tokens as a prompt with an image."""
        self._num_sequences += 1
        length = _TEXT_BEFORE + self._image[1] + _TEXT_AFTER
        return Sequence(
            seq_id=f"bench-{self._num_sequences}",
            prompt_ids=[1, *self._rng.choices(self._words, k=length)],
            max_new_tokens=num_tokens,
            sampling=SamplingParams(seed=0, temperature=0.0, ignore_eos=True),
        )


def generate(engine: Engine, sequences: list[Sequence]) -> dict[str, Any]:
    """Run all sequences.

    Return each sequence's time to first token, the decode step time and the throughput.
    """
    for sequence in sequences:
        engine.add(sequence)
    began = last = time.perf_counter()
    first_s: dict[str, float] = {}
    steps_s: list[float] = []
    while engine.num_sequences:
        is_decoding = len(first_s) == len(sequences)
        outputs = engine.step()
        now = time.perf_counter()
        if is_decoding:
            steps_s.append(now - last)
        last = now
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
            first_s.setdefault(output.seq_id, now - began)
    num_tokens = sum(len(sequence.output_ids) for sequence in sequences)
    return {
        "prompt_tokens": len(sequences[0].prompt_ids),
        "ttft_s": sorted(first_s.values()),
        "decode_step_s": percentile(steps_s, 50) if steps_s else None,
        "output_tokens_per_s": num_tokens / (last - began),
        "wall_s": last - began,
    }


if __name__ == "__main__":
    main()
