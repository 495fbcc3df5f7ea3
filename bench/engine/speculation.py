"""``python -m bench.engine.speculation``: what prompt lookup gains, and what it costs where it is of no use.

Only the engine, only decoding: the time begins when every prompt is computed. Rounds without and with
speculation take turns and the median of their ratios counts, so that other load weighs on both; tokens a step
do not depend on it at all. The tiny model gives real answers:

    describe again   a picture was described; the same question once more, so the answer repeats the history
    questions        one question of the exam about each of many pictures, short answers that repeat nothing

What a model with random weights says means nothing, so a LLaVA-1.5-shaped one only shows the bounds:

    ceiling          one word again and again (``logit_bias``): every draft is right
    chance           eight words at random: a lookup mostly finds something, and it is mostly wrong
    chat             all words at random: nothing repeats
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

sys.path.append(str(ROOT / "tools"))  # the tiny model's scenes and exam
from tiny.drawing import draw, preprocess
from tiny.evaluation import Question, questions

TINY_ANSWERS = 32  # conversations a round; the tiny model's answers are short
PROMPT_TOKENS, ANSWER_TOKENS = 64, 48  # of the large model
WORDS = range(300, 32_000)  # ids below are specials and bytes

Batches = list[list[Sequence]]  # run one after another, the sequences of each concurrently
MakeBatches = Callable[[int], Batches]  # by round, no two alike


@dataclass(frozen=True)
class Workload:
    title: str
    number: int  # of sequences at once
    make: MakeBatches


@dataclass(frozen=True)
class Sample:
    """One round. ``num_steps`` are those of decoding; ``cpu_seconds`` are of all threads."""

    seconds: float
    cpu_seconds: float
    num_tokens: int
    num_steps: int
    num_drafted: int
    num_accepted: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.speculation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="bf16", help="of the large model")
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--only", choices=["tiny", "large"])
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
    exam = list(questions(400))
    described = [question for question in exam if question.kind == "describe"]
    others = [question for question in exam if question.kind not in ("describe", "two pictures")]

    def start(speculation: str) -> tuple[EngineInterface, list[Workload]]:
        flags = ["--speculation", speculation, "--device", "cpu", "--precision", "fp32"]
        model = open_model(load_settings(flags))
        return model.engine, [
            Workload(title, number, batches_of(pool, to_messages, model.prompts, number))
            for number in at_once
            for title, pool, to_messages in (
                ("describe again", described, again),
                ("questions", others, once),
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
        sampled = random.Random(round_).sample(pool, TINY_ANSWERS)
        sequences = [
            sequence_of(f"{round_}-{index}", question, to_messages(question), prompts)
            for index, question in enumerate(sampled)
        ]
        return [sequences[first : first + number] for first in range(0, TINY_ANSWERS, number)]

    return make


def once(question: Question) -> list[Message]:
    images = tuple(image_of(question)[0] for _ in question.scenes)
    return [Message("user", (*images, question.turns[0].question))]


def again(question: Question) -> list[Message]:
    """Twice described: what a user does who wants to see whether the answer stays the same."""
    turn = question.turns[-1]
    first = once(question)
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
                    max_new_tokens=ANSWER_TOKENS,
                    sampling=sampling,
                )
                for index in range(number)
            ]
        ]

    return make


def compare(
    start: Callable[[str], tuple[EngineInterface, list[Workload]]], num_rounds: int
) -> list[dict[str, Any]]:
    """Round by round with one engine and then with the other; the first round goes uncounted."""
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
            "at_once": workload.number,
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


def _pace(sample: Sample) -> float:  # s a token
    return sample.seconds / sample.num_tokens


def _pace_cpu(sample: Sample) -> float:
    return sample.cpu_seconds / sample.num_tokens


def _tokens_per_step(samples: list[Sample]) -> float:
    return sum(sample.num_tokens for sample in samples) / sum(sample.num_steps for sample in samples)


def generate_all(engine: EngineInterface, batches: Batches) -> tuple[Sample, dict[str, list[int]]]:
    """Of each batch first the prompts, untimed; what is said before the last of them is computed counts for
    nothing."""
    answers: dict[str, list[int]] = {}
    samples = [_generate_batch(engine, batch, answers) for batch in batches]
    return Sample(*map(sum, zip(*map(astuple, samples), strict=True))), answers


def _generate_batch(
    engine: EngineInterface, sequences: list[Sequence], answers: dict[str, list[int]]
) -> Sample:
    answers |= {sequence.seq_id: [] for sequence in sequences}
    for sequence in sequences:
        engine.add(sequence)
    while any(not answer for answer in answers.values()):
        _step(engine, answers)
    before, num_before = engine.stats(), sum(map(len, answers.values()))
    began, began_cpu = time.perf_counter(), time.process_time()
    while engine.num_sequences:
        _step(engine, answers)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    after = engine.stats()
    return Sample(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        num_tokens=sum(map(len, answers.values())) - num_before,
        num_steps=after.num_steps_total - before.num_steps_total,
        num_drafted=after.num_draft_tokens_total - before.num_draft_tokens_total,
        num_accepted=after.num_accepted_tokens_total - before.num_accepted_tokens_total,
    )


def _step(engine: EngineInterface, answers: dict[str, list[int]]) -> None:
    for output in engine.step():
        if output.token_id is not None:
            answers[output.seq_id].append(output.token_id)


if __name__ == "__main__":
    main()
