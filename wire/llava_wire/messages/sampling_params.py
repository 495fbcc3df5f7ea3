"""Sampling parameters, shared by the server, the wire protocol and the engine."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Grammar", "GrammarKind", "SamplingParams"]

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "tools"]


class Grammar(msgspec.Struct, frozen=True):
    """A structured output format that the generated text must match.

    Depending on ``kind``, ``text`` is a JSON schema, a regular expression, or a JSON list of strings; it is
    empty for ``json_object``. For ``tools`` it is a JSON object with ``choice`` ("auto": text or calls;
    "required", "named": calls only), ``is_parallel`` (allow several calls) and ``functions``, each with a
    ``name`` and a JSON schema ``parameters``. The format of a call is ``<tool_call>{"name": "...",
    "arguments": {...}}</tool_call>``; calls are separated by a line break.
    """

    kind: GrammarKind
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling parameters of one job, with the names and semantics of the OpenAI API and vLLM.

    All defaults are neutral: they have no effect. Defaults are not sent, so that older workers can decode the
    job. The server validates the ranges; the worker validates token IDs against the vocabulary.

    - ``seed``: any 64-bit integer, used modulo 2**64. Always set, so that another worker can continue the
      same random sequence.
    - ``max_tokens``: maximum number of generated tokens, at least 1 (0 is allowed with ``is_echoed``). None:
      up to the context length.
    - ``temperature``: 0 to 2; divides the logits. 0 selects greedy sampling.
    - ``top_p``: above 0, at most 1; sample from the smallest set of most likely tokens with at least this
      total probability. Neutral: 1.
    - ``stop``: strings that end the output and are not included in it.
    - ``ignore_eos``: continue to generate after the end-of-sequence token.
    - ``top_k``: number of most likely tokens to sample from. Neutral: 0 (all tokens).
    - ``min_p``: 0 to 1; sample only tokens with at least this fraction of the highest probability.
      Neutral: 0.
    - ``repetition_penalty``: above 0, at most 2; for tokens in the prompt or the output, divides positive
      logits and multiplies negative logits. Neutral: 1.
    - ``presence_penalty``: -2 to 2; subtracted from the logit of each token in the output. Neutral: 0.
    - ``frequency_penalty``: -2 to 2; subtracted once per occurrence of the token in the output. Neutral: 0.
    - ``logit_bias``: (token ID, bias) pairs with unique IDs; a bias of -100 to 100 is added to the logit.
    - ``min_tokens``: number of tokens to generate before the end-of-sequence token or any of
      ``stop_token_ids`` can be sampled. Neutral: 0.
    - ``stop_token_ids``: tokens that end the output and add no text to it.
    - ``num_logprobs``: number of alternatives per token for which log probabilities are returned. 0: only the
      sampled token. None: no log probabilities.
    - ``grammar``: the structured output format, if any.
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
