"""``python -m bench.engine.gaps``: measure the gaps between tokens while a long prompt is prefilled.

The benchmark runs the engine without a server, by default with the bundled tiny model. While four streams
are decoding, long prompts with new images arrive at regular intervals. Each of these prompts is prefilled in
chunks of at most 512 tokens per step, in such chunks with a limit for the duration of a step, or in a single
step with a larger token budget. The cases alternate for several rounds, so that other load on the machine
affects all of them equally. A gap is the time between two
consecutive tokens of a stream. Gaps are reported both in wall time and in the process's CPU time, which other
programs do not affect. Speculative decoding is disabled, because tokens that are generated in the same step
have no gap between them.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llava_worker
import matplotlib
import numpy as np
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.core.sequence import Pixels
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import ModelInfo, build_engine
from llava_worker.engine.startup.engine_config import EngineConfig

from bench.record import RESULTS, write_record

TINY = Path(llava_worker.__file__).parent / "tiny"
NUM_STREAMS = 4
NUM_IMAGE_TOKENS, NUM_WORDS = 1400, 300  # per long prompt; the context length of the tiny model is 2,048
STEPS_BETWEEN = 20  # number of steps between the end of a long prompt and the arrival of the next one


Times = tuple[float, float]  # wall time and CPU time in seconds


@dataclass
class Timings:
    """Gaps with and without a concurrent prefill, and the time to first token of each long prompt."""

    gaps: list[Times] = field(default_factory=list)
    gaps_during_prefill: list[Times] = field(default_factory=list)
    prompts: list[Times] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.gaps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="number of rounds (default 4)")
    parser.add_argument("--prompts", type=int, default=3, help="number of long prompts per round (default 3)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="number of torch threads; CPU time is summed over them (default 1)",
    )
    parser.add_argument("--folder", type=Path, default=TINY, help="checkpoint (default: the tiny model)")
    parser.add_argument("--precision", default="fp32", help="precision of the model (default fp32)")
    parser.add_argument("--kv-cache-mb", type=int, default=256, help="size of the KV cache (default 256)")
    parser.add_argument("--gap-ms", type=float, default=20, help="limit of the third case (default 20)")
    parser.add_argument("--name", default="gaps", help="name of the record and the plot (default gaps)")
    args = parser.parse_args()
    cases = {
        "chunks of 512": {"max_batch_tokens": 512, "max_token_gap_s": math.inf},
        f"at most {args.gap_ms:g} ms": {"max_batch_tokens": 512, "max_token_gap_s": args.gap_ms / 1e3},
        "whole prompts": {"max_batch_tokens": 4096, "max_token_gap_s": math.inf},
    }
    timings = {name: Timings() for name in cases}
    numbers = iter(range(1_000_000))
    for _ in range(args.rounds):
        for name, limits in cases.items():
            engine, info = build_engine(
                EngineConfig(
                    args.folder,
                    precision=args.precision,
                    device="cpu",
                    num_threads=args.threads,
                    kv_cache_bytes=args.kv_cache_mb << 20,
                    use_speculation=False,
                    **limits,
                )
            )
            observe(engine, info, timings[name], num_prompts=args.prompts, numbers=numbers)
    results = {name: _summarize(timing) for name, timing in timings.items()}
    settings = {
        "model": "tiny" if args.folder == TINY else args.folder.name,
        "precision": args.precision,
        "num_streams": NUM_STREAMS,
        "long_prompt_tokens": _num_images(info) * info.tokens_per_tile + NUM_WORDS,
        "images": _num_images(info),
        "threads": args.threads,
        "rounds": args.rounds,
        "prompts_per_round": args.prompts,
    }
    print(write_record(args.name, results, settings=settings))
    print(plot(timings, RESULTS / f"{args.name}.png"))
    for name, summary in results.items():
        print(name, summary)


def observe(
    engine: Engine, info: ModelInfo, timings: Timings, *, num_prompts: int, numbers: Iterator[int]
) -> None:
    """Record the gaps in continuously decoding streams while ``num_prompts`` long prompts are prefilled."""
    for index in range(NUM_STREAMS):
        engine.add(_stream(f"stream {index}", next(numbers), info))
    for _ in range(STEPS_BETWEEN):
        engine.step()
    last = dict.fromkeys((output.seq_id for output in engine.step()), _now())
    for _ in range(num_prompts):
        engine.add(_long_prompt("long", next(numbers), info))
        is_prefilling, num_after, last["long"] = True, 0, _now()
        while num_after < STEPS_BETWEEN:
            seq_ids = [output.seq_id for output in engine.step()]
            now = _now()
            for seq_id in seq_ids:
                gap = (now[0] - last[seq_id][0], now[1] - last[seq_id][1])
                gaps = timings.gaps_during_prefill if is_prefilling else timings.gaps
                (timings.prompts if seq_id == "long" else gaps).append(gap)
                last[seq_id] = now
            is_prefilling = is_prefilling and "long" not in seq_ids
            num_after += not is_prefilling


def _now() -> Times:
    return time.perf_counter(), time.process_time()


def _stream(seq_id: str, number: int, info: ModelInfo) -> Sequence:
    words = np.random.default_rng(number).integers(3, 300, 20).tolist()
    return Sequence(
        seq_id=seq_id,
        prompt_ids=[1, *words],
        max_new_tokens=info.context_length - len(words) - 2,
        sampling=SamplingParams(temperature=1.0, seed=number, ignore_eos=True),
    )


def _num_images(info: ModelInfo) -> int:
    return max(1, NUM_IMAGE_TOKENS // info.tokens_per_tile)


def _long_prompt(seq_id: str, number: int, info: ModelInfo) -> Sequence:
    rng = np.random.default_rng(number)
    prompt_ids, images = [1], []
    pixels: list[Pixels] = []
    for _ in range(_num_images(info)):
        tile = rng.integers(0, 256, (info.image_side, info.image_side, 3), dtype=np.uint8).tobytes()
        digest = hashlib.sha256(tile).hexdigest()
        images.append(ImageSpan(len(prompt_ids), info.tokens_per_tile, digest))
        pixels.append(tile)
        prompt_ids += [info.image_token_id] * info.tokens_per_tile
    prompt_ids += rng.integers(3, 300, NUM_WORDS - 1).tolist()
    return Sequence(seq_id=seq_id, prompt_ids=prompt_ids, images=images, pixels=pixels, max_new_tokens=1)


def _summarize(timings: Timings) -> dict[str, Any]:
    clocked = {
        "gap": timings.gaps + timings.gaps_during_prefill,
        "gap_beside_a_prompt": timings.gaps_during_prefill,
        "gap_without": timings.gaps,
        "long_prompt": timings.prompts,
    }
    clocks = ("ms", "cpu_ms")
    return {
        f"{name}_{clock}": _distribution([pair[which] for pair in times])
        for name, times in clocked.items()
        for which, clock in enumerate(clocks)
    }


def _distribution(seconds: list[float]) -> dict[str, float]:
    points = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    percentiles = {name: round(1e3 * float(np.percentile(seconds, p)), 2) for name, p in points.items()}
    return {"count": len(seconds), **percentiles}


def plot(timings: dict[str, Timings], path: Path) -> Path:
    """Plot the fraction of gaps that are longer than each duration, with and without a concurrent prefill."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.9), layout="constrained")
    for (name, timing), color in zip(timings.items(), ("#1769aa", "#15803d", "#c2410c"), strict=True):
        for gaps, label, style in (
            (timing.gaps_during_prefill, f"{name}, during prefill", "-"),
            (timing.gaps, f"{name}, decode only", ":"),
        ):
            ordered = np.sort([cpu for _, cpu in gaps]) * 1e3
            axis.step(ordered, 1 - np.arange(len(ordered)) / len(ordered), style, color=color, label=label)
    axis.set(
        xscale="log",
        xlabel="gap between tokens (ms of CPU time)",
        ylabel="fraction of gaps that are longer",
    )
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    main()
