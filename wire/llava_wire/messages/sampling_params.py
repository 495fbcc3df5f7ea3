"""Sampling parameters of a job: how the worker chooses each token."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Grammar", "GrammarKind", "SamplingParams"]

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "tools"]


class Grammar(msgspec.Struct, frozen=True):
    """What the answer must be. ``text`` is a JSON schema, a regular expression, or a JSON list of strings, as
    ``kind`` says; empty for ``json_object``.

    For ``tools`` it is JSON: ``choice`` ("auto": text or calls; "required", "named": calls), ``is_parallel``
    (several calls) and ``functions``, each a ``name`` and a JSON schema ``parameters``. A call is written
    ``<tool_call>{"name": "...", "arguments": {...}}</tool_call>``, with a line break between two.
    """

    kind: GrammarKind
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens. ``seed`` is always set, so that another worker continues the same draw.

    ``temperature`` 0 is greedy. ``max_tokens`` None means up to the end of the context. ``top_k`` 0 keeps all
    tokens. ``logit_bias`` are (token id, bias), each id once. ``num_logprobs`` None asks for no
    log-probabilities, 0 for the chosen tokens' only. All other defaults change nothing.
    """

    seed: int
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    grammar: Grammar | None = None
