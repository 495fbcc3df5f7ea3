"""``python -m bench.engine.speculation``: measure the speedup and overhead of speculative decoding.

The benchmark runs the engine without a server and measures only decoding, once all prompts have been
prefilled. Rounds with and without speculation alternate, so that other load on the machine affects both
equally, and the median ratio is reported. Other load does not affect the number of tokens per step. The tiny
model produces realistic outputs:

    describe again   the model describes an image twice, so the second output repeats the first one
    questions        one evaluation question per image; outputs are short and contain no repetition

A model with LLaVA-1.5's layer shapes and random weights shows the extremes:

    ceiling          the same token at every position (``logit_bias``); every draft token is accepted
    chance           eight random tokens; drafts are usually found and usually rejected
    chat             random tokens from the whole vocabulary; nothing is repeated
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from llava_wire.messages.job import ImageRef, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import EngineInterface, Sequence
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings

from bench.checkpoint import ensure_checkpoint
from bench.record import ROOT, write_record

sys.path.append(str(ROOT / "tools"))  # for the imports from ``tiny``
from tiny.drawing import draw, preprocess
from tiny.evaluation import Question, evaluation_questions

TINY_OUTPUTS = 32  # per round; the tiny model's outputs are short
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 48  # for the model with LLaVA-1.5's layer shapes
WORDS = range(300, 32_000)  # all lower IDs are special tokens or byte tokens

Batches = list[list[Sequence]]  # batches run sequentially; the sequences in a batch run concurrently
MakeBatches = Callable[[int], Batches]  # takes the round number; batches differ between rounds


@dataclass(frozen=True)
class Workload:
    title: str
    num_concurrent: int  # number of concurrent sequences
    make: MakeBatches


@dataclass(frozen=True)
class Sample:
    """Results of a round.

    ``num_steps`` is the number of decode steps; ``cpu_seconds`` includes all threads.
    """

    seconds: float
    cpu_seconds: float
    num_tokens: int
    num_steps: int
    num_drafted: int
    num_accepted: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.speculation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="number of torch threads (default 1)")
    parser.add_argument("--precision", default="bf16", help="precision of the large model (default bf16)")
    parser.add_argument(
        "--at-once", type=int, nargs="*", default=[1, 8], help="numbers of concurrent sequences (default 1 8)"
    )
    parser.add_argument("--only", choices=["tiny", "large"], help="benchmark only this model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    if args.only != "large":
        results["tiny-llava, fp32"] = measure_tiny(args.at_once, args.rounds)
    if args.only != "tiny":
        folder = ensure_checkpoint()
        name = f"{folder.name}, random weights, {args.precision}"
        results[name] = measure_large(folder, args.precision, args.at_once, args.rounds)
    settings = {key: value for key, value in vars(args).items() if key != "only"}
    print(write_record("speculation", results, settings=settings))


def measure_tiny(at_once: list[int], num_rounds: int) -> list[dict[str, Any]]:
    evaluation = list(evaluation_questions(400))
    described = [question for question in evaluation if question.kind == "describe"]
    others = [question for question in evaluation if question.kind not in ("describe", "two pictures")]

    def start(speculation: str) -> tuple[EngineInterface, list[Workload]]:
        flags = ["--speculation", speculation, "--device", "cpu", "--precision", "fp32"]
        model = open_model(load_settings(flags))
        return model.engine, [
            Workload(title, number, batches_of(pool, to_messages, model.prompts, number))
            for number in at_once
            for title, pool, to_messages in (
                ("describe again", described, ask_twice),
                ("questions", others, ask_once),
            )
        ]

    return compare(start, num_rounds)


def batches_of(
    pool: list[Question],
    to_messages: Callable[[Question], list[Message]],
    prompts: PromptBuilder,
    number: int,
) -> MakeBatches:
    def make(round_: int) -> Batches:
        sampled = random.Random(round_).sample(pool, TINY_OUTPUTS)
        sequences = [
            sequence_of(f"{round_}-{index}", question, to_messages(question), prompts)
            for index, question in enumerate(sampled)
        ]
        return [sequences[first : first + number] for first in range(0, TINY_OUTPUTS, number)]

    return make


def ask_once(question: Question) -> list[Message]:
    images = tuple(image_of(question)[0] for _ in question.scenes)
    return [Message("user", (*images, question.turns[0].question))]


def ask_twice(question: Question) -> list[Message]:
    """Return a conversation in which the user repeats a question, so that the model repeats its response."""
    turn = question.turns[-1]
    first = ask_once(question)
    return [*first, Message("assistant", (turn.answer,)), Message("user", (turn.question,))]


def image_of(question: Question) -> tuple[ImageRef, bytes]:
    image = preprocess(draw(question.scenes[0]))
    pixels = image.tobytes()
    digest = hashlib.sha256(pixels).hexdigest()
    return ImageRef(
        digest=digest, num_tiles=1, side=image.width, width=image.width, height=image.height
    ), pixels


def sequence_of(name: str, question: Question, messages: list[Message], prompts: PromptBuilder) -> Sequence:
    prompt = prompts.build_chat(messages)
    return Sequence(
        seq_id=name,
        prompt_ids=prompt.token_ids,
        images=prompt.images,
        pixels=[image_of(question)[1] for _ in prompt.images],
        max_new_tokens=200,
    )


def measure_large(folder: Path, precision: str, at_once: list[int], num_rounds: int) -> list[dict[str, Any]]:
    eight = tuple((word, 100.0) for word in range(1000, 1008))
    samplings = {
        "ceiling": SamplingParams(seed=0, temperature=0.0, ignore_eos=True, logit_bias=eight[:1]),
        "chance": SamplingParams(seed=0, ignore_eos=True, temperature=100.0, logit_bias=eight),
        "chat": SamplingParams(seed=0, ignore_eos=True, temperature=1.0),
    }

    def start(speculation: str) -> tuple[EngineInterface, list[Workload]]:
        engine, _ = build_engine(
            EngineConfig(
                folder,
                precision=precision,
                device="cpu",
                max_num_sequences=max(at_once),
                kv_cache_bytes=256 << 20,
                encoder_cache_bytes=0,
                use_speculation=speculation == "auto",
            )
        )
        return engine, [
            Workload(title, number, random_sequences(number, sampling))
            for number in at_once
            for title, sampling in samplings.items()
        ]

    return compare(start, num_rounds)


def random_sequences(number: int, sampling: SamplingParams) -> MakeBatches:
    def make(round_: int) -> Batches:
        rng = random.Random(round_)
        return [
            [
                Sequence(
                    seq_id=f"{round_}-{index}",
                    prompt_ids=[1, *rng.choices(WORDS, k=PROMPT_TOKENS - 1)],
                    max_new_tokens=OUTPUT_TOKENS,
                    sampling=sampling,
                )
                for index in range(number)
            ]
        ]

    return make


def compare(
    start: Callable[[str], tuple[EngineInterface, list[Workload]]], num_rounds: int
) -> list[dict[str, Any]]:
    """Run each workload alternately with and without speculation. The first round is a warm-up."""
    (off, workloads), (auto, _) = start("off"), start("auto")
    results = []
    for workload in workloads:
        rounds = [
            (generate_all(off, workload.make(round_)), generate_all(auto, workload.make(round_)))
            for round_ in range(num_rounds + 1)
        ]
        before = [sample for (sample, _), _ in rounds[1:]]
        after = [sample for _, (sample, _) in rounds[1:]]
        result: dict[str, Any] = {
            "workload": workload.title,
            "at_once": workload.num_concurrent,
            "speed_up": median(_pace(b) / _pace(a) for b, a in zip(before, after, strict=True)),
            "speed_up_cpu": median(_pace_cpu(b) / _pace_cpu(a) for b, a in zip(before, after, strict=True)),
            "tokens_per_step": {"off": _tokens_per_step(before), "auto": _tokens_per_step(after)},
            "has_same_answers": all(without == drafted for (_, without), (_, drafted) in rounds),
            "rounds": {
                "off": [asdict(sample) for sample in before],
                "auto": [asdict(sample) for sample in after],
            },
        }
        results.append(result)
        print({key: value for key, value in result.items() if key != "rounds"}, flush=True)
    return results


def _pace(sample: Sample) -> float:  # seconds per token
    return sample.seconds / sample.num_tokens


def _pace_cpu(sample: Sample) -> float:
    return sample.cpu_seconds / sample.num_tokens


def _tokens_per_step(samples: list[Sample]) -> float:
    return sum(sample.num_tokens for sample in samples) / sum(sample.num_steps for sample in samples)


def generate_all(engine: EngineInterface, batches: Batches) -> tuple[Sample, dict[str, list[int]]]:
    """Generate all batches. Return the measurements and each sequence's output tokens.

    In each batch, measurement starts once all prompts have been prefilled.
    """
    outputs: dict[str, list[int]] = {}
    samples = [_generate_batch(engine, batch, outputs) for batch in batches]
    return Sample(*map(sum, zip(*map(astuple, samples), strict=True))), outputs


def _generate_batch(
    engine: EngineInterface, sequences: list[Sequence], outputs: dict[str, list[int]]
) -> Sample:
    outputs |= {sequence.seq_id: [] for sequence in sequences}
    for sequence in sequences:
        engine.add(sequence)
    while any(not output for output in outputs.values()):
        _step(engine, outputs)
    before, num_before = engine.stats(), sum(map(len, outputs.values()))
    began, began_cpu = time.perf_counter(), time.process_time()
    while engine.num_sequences:
        _step(engine, outputs)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    after = engine.stats()
    return Sample(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        num_tokens=sum(map(len, outputs.values())) - num_before,
        num_steps=after.num_steps_total - before.num_steps_total,
        num_drafted=after.num_draft_tokens_total - before.num_draft_tokens_total,
        num_accepted=after.num_accepted_tokens_total - before.num_accepted_tokens_total,
    )


def _step(engine: EngineInterface, outputs: dict[str, list[int]]) -> None:
    for output in engine.step():
        if output.token_id is not None:
            outputs[output.seq_id].append(output.token_id)


if __name__ == "__main__":
    main()
