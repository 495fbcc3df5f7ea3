"""The workloads of the serving benchmark."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from llava_cli.bench import Images, Plan, Run, run_load, summarize

__all__ = [
    "AT_ONCE",
    "COMMON_TOKENS",
    "CONTEXTS",
    "OUTPUT_TOKENS",
    "PROMPT_TOKENS",
    "STREAMS",
    "Workload",
    "comparison",
    "growth",
    "measure",
]

AT_ONCE = 8
OUTPUT_TOKENS = 32
PROMPT_TOKENS = (
    641  # with an image; approximate, because each question contains a number with one to three digits
)
COMMON_TOKENS = 33  # length of the system prompt, which is the beginning of every prompt
CONTEXTS = (PROMPT_TOKENS, 1000, 2000, 3500)  # tokens per prompt
STREAMS = (1, 2, 4, AT_ONCE)
_TIMEOUT_S = 1800.0
_REQUESTS = 3  # for workloads with one request at a time
_WORDS = 20  # in the question of a prompt of PROMPT_TOKENS


@dataclass(frozen=True)
class Workload:
    """A load plan with a title."""

    title: str
    plan: Plan

    def with_ignore_eos(self, ignore_eos: bool) -> Workload:
        """Return a copy with the given ``ignore_eos``, because some servers do not support this option."""
        return replace(self, plan=replace(self.plan, ignore_eos=ignore_eos))

    def quick(self) -> Workload:
        """Return a smaller version of this workload for a smoke test."""
        at_once = min(self.plan.concurrency or 1, 2)
        return replace(
            self,
            plan=replace(
                self.plan,
                num_requests=at_once,
                concurrency=at_once,
                max_tokens=4,
                num_turns=min(self.plan.num_turns, 2),
            ),
        )


def comparison(prompt_tokens: int = PROMPT_TOKENS) -> dict[str, Workload]:
    """Return the workloads of a comparison, keyed by name. Prompts with an image have ``prompt_tokens``."""
    base = _plan(prompt_tokens)
    at_once = replace(base, num_requests=AT_ONCE, concurrency=AT_ONCE)
    return {
        "new": Workload("1 request, new image", replace(base, seed=1)),
        "new8": Workload("8 requests, new images", replace(at_once, seed=2)),
        "same8": Workload("8 requests, same image", replace(at_once, images=Images.SAME, seed=3)),
        "text": Workload("1 request, text only", replace(base, images=Images.NONE, seed=4)),
        "talk": Workload("conversation with 5 turns", replace(base, num_requests=1, num_turns=5, seed=5)),
    }


def growth() -> dict[str, Workload]:
    """Return workloads with increasing numbers of tokens per prompt, and of concurrent requests."""
    contexts = {
        f"context-{tokens}": Workload(f"1 request, {tokens} tokens", replace(_plan(tokens), seed=tokens))
        for tokens in CONTEXTS
    }
    base = _plan(PROMPT_TOKENS)
    streams = {
        f"streams-{number}": Workload(
            f"{number} requests, new images",
            replace(base, num_requests=number, concurrency=number, seed=10 + number),
        )
        for number in STREAMS
    }
    return {**contexts, **streams}


def _plan(prompt_tokens: int) -> Plan:
    num_words = _WORDS + prompt_tokens - PROMPT_TOKENS
    return Plan(num_requests=_REQUESTS, max_tokens=OUTPUT_TOKENS, num_words=num_words, width=640, height=480)


def measure(url: str, model: str | None, workload: Workload, *, is_first: bool) -> dict[str, Any]:
    """Run a workload and return its summary and the results of each request.

    If ``is_first`` is true, send a warm-up request first.
    """
    load = run_load(workload.plan, url, model=model, timeout_s=_TIMEOUT_S, is_warming_up=is_first)
    run = asyncio.run(load)
    return {
        "ignore_eos": run.plan.ignore_eos,
        "title": workload.title,
        **summarize(run),
        "requests": [_request_figures(run, i) for i in range(len(run.samples))],
    }


def _request_figures(run: Run, index: int) -> dict[str, Any]:
    sample = run.samples[index]
    return {
        "turn": sample.turn,
        "ttft_s": sample.ttft_s,
        "tpot_s": sample.tpot_s,
        "total_s": sample.total_s,
        "num_tokens": sample.num_tokens,
        "prompt_tokens": sample.prompt_tokens,
        "cached_tokens": sample.cached_tokens,
        "error": sample.error,
        "message": sample.message,
    }
