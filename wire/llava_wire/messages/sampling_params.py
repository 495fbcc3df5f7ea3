"""Sampling parameters: the one declaration that the server fills, the wire carries and the engine reads."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Grammar", "GrammarKind", "SamplingParams"]

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "tools"]


class Grammar(msgspec.Struct, frozen=True):
    """A structured output: what the generated text must match.

    ``text`` is a JSON schema, a regular expression, or a JSON list of strings, according to ``kind``; empty
    for ``json_object``. For ``tools`` it is JSON with ``choice`` ("auto": text or calls; "required", "named":
    calls), ``is_parallel`` (several calls) and ``functions``, each a ``name`` and a JSON schema
    ``parameters``. A call is written ``<tool_call>{"name": "...", "arguments": {...}}</tool_call>``, with a
    line break between two calls.
    """

    kind: GrammarKind
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling parameters of one job, with the names and meanings of OpenAI's API and vLLM.

    Every default is neutral: it changes nothing. Defaults are not sent, so that older workers read the job.
    The server checks the ranges; token IDs are checked against the vocabulary by the worker.

    - ``seed``: any 64-bit integer, taken modulo 2**64. Always set, so that another worker continues the same
      random draws.
    - ``max_tokens``: maximum number of generated tokens, at least 1 (0 if the job has ``is_echoed``); None:
      up to the end of the context.
    - ``temperature``: 0 to 2; 0 is greedy. Logits are divided by it.
    - ``top_p``: above 0, at most 1; sample from the most likely tokens whose probabilities sum to it.
      Neutral: 1.
    - ``stop``: strings that end the output and are not part of it.
    - ``ignore_eos``: generate on after the end-of-sequence token.
    - ``top_k``: sample from that many of the most likely tokens. Neutral: 0, all tokens.
    - ``min_p``: 0 to 1; sample only tokens with at least this fraction of the highest probability.
      Neutral: 0.
    - ``repetition_penalty``: above 0, at most 2; divides the positive logits of tokens in the prompt or the
      output, and multiplies the negative ones. Neutral: 1.
    - ``presence_penalty``: -2 to 2; subtracted from the logit of each token in the output. Neutral: 0.
    - ``frequency_penalty``: -2 to 2; subtracted once per occurrence of the token in the output. Neutral: 0.
    - ``logit_bias``: (token ID, bias) pairs, each ID once; a bias of -100 to 100 is added to the logit.
    - ``min_tokens``: before that many generated tokens, neither the end-of-sequence token nor any of
      ``stop_token_ids`` is sampled. Neutral: 0.
    - ``stop_token_ids``: tokens that end the output and have no text in it.
    - ``num_logprobs``: alternatives per token for which log-probabilities are returned; 0: only the sampled
      token's; None: none at all.
    - ``grammar``: the structured output, if any.
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
