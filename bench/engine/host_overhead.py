"""``python -m bench.engine.host_overhead``: measure the CPU time that the engine's host code needs per step.

On a GPU, the host schedules a step, copies its inputs, replays a CUDA graph, samples tokens and processes the
results. If this takes longer than the GPU needs for the step, the GPU waits. This benchmark runs the same
code on a CPU without computing the model: instead of replaying a graph, random logits are copied. The
vocabulary has only 64 tokens, so that operations on tensors take little longer than the launches of kernels
on a GPU.

A step decodes one token for each stream, with asynchronous scheduling as in a worker. The drafter looks up
draft tokens, but does not propose them. Half of the streams sample at random, the others are greedy. CPU time
is that of the whole process, so it hardly depends on other programs. ``--baseline`` measures another checkout
of the repository alternately and records the ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import Sequence
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.input_batch import Batch
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.speculation.drafter import PromptLookupDrafter
from llava_worker.model.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionPlan,
    DecodeMetadata,
)
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.config.model_config import ImageConfig, ModelConfig
from llava_worker.model.gpu.cuda_graphs import capture_sizes
from llava_worker.model.gpu.step_graphs import StepGraphs
from llava_worker.model.llava import Llava
from llava_worker.model.quantization.precision import choose_precision
from torch import Tensor

from bench.record import ROOT, commit_of, write_record

STREAMS = (1, 16, 128, 256)
PROMPT_TOKENS = 640
VOCABULARY = 64
BATCH_TOKENS = 2048
WARMUP_STEPS = 50
_NUM_LOGITS = 8192  # rows of random logits, from which each step copies a random part


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.host_overhead", description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="steps per round (default 300)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default 5)")
    parser.add_argument("--baseline", type=Path, help="another checkout to compare with")
    parser.add_argument("--print", action="store_true", help="measure one round and print it")
    args = parser.parse_args()
    if args.print:
        print(json.dumps({num: measure(num, args.steps) for num in STREAMS}))
        return
    rounds = [_round(ROOT, args.steps) for _ in range(1 if args.baseline else args.rounds)]
    baseline: list[dict[str, float]] = []
    if args.baseline:
        for _ in range(args.rounds - 1):
            baseline.append(_round(args.baseline, args.steps))
            rounds.append(_round(ROOT, args.steps))
    results = {str(num): _summarize(str(num), rounds, baseline) for num in STREAMS}
    settings = {"prompt_tokens": PROMPT_TOKENS, "steps": args.steps, "rounds": args.rounds}
    settings |= {"baseline_commit": commit_of(args.baseline)} if args.baseline else {}
    print(write_record("host-overhead", results, settings=settings))
    for num, summary in results.items():
        print(f"{num} streams:", summary)


def _round(checkout: Path, num_steps: int) -> dict[str, float]:
    """Measure a checkout in a process of its own. Return the CPU time per step in ms by number of streams."""
    command = [sys.executable, "-m", "bench.engine.host_overhead", "--print", "--steps", str(num_steps)]
    folders = ["", "worker", "wire", "client"]
    environment = {"PYTHONPATH": ":".join(str(checkout / name) for name in folders), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    times: dict[str, float] = json.loads(done.stdout)
    return times


def _summarize(
    num: str, rounds: list[dict[str, float]], baseline: list[dict[str, float]]
) -> dict[str, float]:
    summary = {"cpu_ms_per_step": round(median(each[num] for each in rounds), 3)}
    if baseline:
        before = median(each[num] for each in baseline)
        summary["baseline_cpu_ms_per_step"] = round(before, 3)
        summary["ratio"] = round(median(each[num] for each in rounds) / before, 3)
    return summary


def measure(num_streams: int, num_steps: int) -> float:
    """Return the CPU time in ms of a step that decodes one token for each of ``num_streams`` streams."""
    torch.set_num_threads(1)
    engine = make_engine(num_streams, PROMPT_TOKENS + WARMUP_STEPS + num_steps + 100)
    add_streams(engine, num_streams, random.Random(0))
    for _ in range(WARMUP_STEPS):
        engine.step()
    before = engine.stats()
    began = time.process_time()
    for _ in range(num_steps):
        engine.step()
    elapsed = time.process_time() - began
    after = engine.stats()
    num_tokens = after.num_decode_tokens_total - before.num_decode_tokens_total
    if num_tokens < 0.95 * num_streams * num_steps:
        raise RuntimeError(f"{num_steps} steps decoded {num_tokens} tokens of {num_streams} streams")
    return 1000 * elapsed / num_steps


def add_streams(engine: Engine, num_streams: int, rng: random.Random) -> None:
    """Add streams and compute their prompts."""
    for number in range(num_streams):
        engine.add(_sequence(str(number), rng, is_random=number % 2 == 1))
    while engine.stats().num_waiting or engine.stats().num_generated_tokens_total < num_streams:
        engine.step()


def make_engine(num_streams: int, context_length: int) -> Engine:
    """Return an engine whose model has the shape of LLaVA-1.5-7B, but computes nothing."""
    cpu, meta = torch.device("cpu"), torch.device("meta")
    config = ModelConfig(model_type="llava")
    model = Llava(config, ImageConfig(), precision=choose_precision("fp32", meta), device=meta)
    model.device = cpu
    block_size = 16
    spec = KVCacheSpec(
        num_blocks=num_streams * (context_length // block_size + 2),
        block_size=block_size,
        num_layers=1,
        num_kv_heads=1,
        head_dim=2,
        dtype=torch.float32,
    )
    runner = StubRunner(model, KVCache(spec, cpu), StubBackend(), EncoderCache(0))
    runner.graphs = StepGraphs(
        model,
        runner.cache,
        runner.backend,
        StubPool(runner.random_logits, num_streams),
        max_tokens=num_streams,
        context_length=context_length,
        is_mixed=False,
    )
    return Engine(
        runner,
        eos_ids=frozenset({2}),
        context_length=context_length,
        max_num_sequences=num_streams,
        max_batch_tokens=BATCH_TOKENS,
        drafter=SilentDrafter(),
        is_async=True,
    )


class StubRunner(ModelRunner):
    """A model runner that returns random logits."""

    def __init__(
        self, model: Llava, cache: KVCache, backend: AttentionBackend, encoder_cache: EncoderCache
    ) -> None:
        super().__init__(model, cache, backend, encoder_cache)
        self._logits = torch.rand(_NUM_LOGITS, VOCABULARY, generator=torch.Generator().manual_seed(0))
        self._rng = random.Random(0)

    def random_logits(self, num_rows: int) -> Tensor:
        first = self._rng.randrange(_NUM_LOGITS - num_rows)
        return self._logits[first : first + num_rows]

    def _compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.random_logits(len(batch.sampled_rows)).clone()
        return logits, logits


class StubPool:
    """Captures graphs that copy random logits. It must be used for `StepGraphs` only."""

    def __init__(self, random_logits: Callable[[int], Tensor], max_tokens: int) -> None:
        self._random_logits = random_logits
        self._sizes: Iterator[int] = reversed(capture_sizes(max_tokens))

    def warm_up(self, compute: Callable[[], Tensor]) -> None:
        pass

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        del compute
        size = next(self._sizes)
        out = torch.empty(size, VOCABULARY)
        return out, lambda: out.copy_(self._random_logits(size))

    def release(self) -> None:
        pass


class SilentDrafter(PromptLookupDrafter):
    """Looks up draft tokens, but does not propose them."""

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        super().propose(sequence, max_tokens=max_tokens, num_rows=num_rows)
        return []


class StubBackend(AttentionBackend):
    """A backend whose plans are never used."""

    name = "stub"

    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        raise NotImplementedError

    def decode_plan(
        self, metadata: DecodeMetadata, cache: KVCache, *, is_mixed: bool = False
    ) -> AttentionPlan | None:
        raise NotImplementedError


def _sequence(seq_id: str, rng: random.Random, *, is_random: bool) -> Sequence:
    return Sequence(
        seq_id=seq_id,
        prompt_ids=[rng.randrange(3, 32_000) for _ in range(PROMPT_TOKENS)],
        max_new_tokens=1 << 20,
        sampling=SamplingParams(seed=rng.randrange(1 << 30), temperature=0.7 * is_random, ignore_eos=True),
    )


if __name__ == "__main__":
    main()
