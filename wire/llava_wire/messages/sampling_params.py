"""Sampling parameters, shared by the server, the wire protocol and the engine."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Grammar", "GrammarKind", "SamplingParams"]

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "gbnf", "tools"]


class Grammar(msgspec.Struct, frozen=True, omit_defaults=True):
    """A structured output format that the generated text must match.

    Depending on ``kind``, ``text`` is a JSON schema, a regular expression, a JSON list of strings, or a
    grammar in llama.cpp's GBNF. For ``json_object``, it is empty. For ``tools``, it is a JSON object with the
    following members:

    - ``choice``: "auto" allows a response or calls; "required" and "named" allow only calls.
    - ``is_parallel``: whether multiple calls are allowed.
    - ``functions``: a list of functions, each with a ``name``, a JSON schema, ``parameters``, and
      ``is_strict`` and ``param``, which have the same meaning as the fields of this class.
    - ``response``: the format of a response, as an object with this class's fields. If it is missing, a
      response is any text.

    The format of a call is ``<tool_call>{"name": "...", "arguments": {...}}</tool_call>``. Calls are
    separated by a line break.

    If ``is_strict`` is false, the worker removes what it cannot enforce from a JSON schema instead of
    rejecting it. ``param`` is the name of the request field that contains the grammar, for error messages.
    """

    kind: GrammarKind
    text: str = ""
    is_strict: bool = True
    param: str = ""

    @property
    def needs_version_3(self) -> bool:
        """Whether a worker that supports only version 2 of the protocol would not enforce the grammar.

        Such workers do not know GBNF, and ignore the response format in a grammar for tools.
        """
        return self.kind == "gbnf" or (self.kind == "tools" and "response" in msgspec.json.decode(self.text))


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling parameters of one job, with the names and semantics of the OpenAI API and vLLM.

    All default values are neutral, that is, they have no effect. They are not sent, so that older workers can
    decode the job. Parameters that older workers must not ignore are listed in ``needs_version_3``. The
    server validates the ranges, and the worker validates token IDs against the vocabulary.

    - ``seed``: any 64-bit integer, used modulo 2**64. It is always set, so that another worker can continue
      the same random sequence.
    - ``max_tokens``: maximum number of generated tokens, at least 1 (0 is allowed with ``is_echoed``). If it
      is None, only the context length limits the output.
    - ``temperature``: 0 to 2; the logits are divided by this value. 0 selects greedy sampling.
    - ``top_p``: greater than 0, at most 1; sample from the smallest set of most likely tokens whose total
      probability is at least this value. Neutral: 1.
    - ``stop``: strings that end the output and are not included in it.
    - ``ignore_eos``: continue generating after the end-of-sequence token.
    - ``top_k``: number of most likely tokens to sample from. Neutral: 0 (all tokens).
    - ``min_p``: 0 to 1; sample only tokens whose probability is at least this fraction of the highest
      probability. Neutral: 0.
    - ``repetition_penalty``: greater than 0, at most 2; for tokens in the prompt or the output, positive
      logits are divided by this value and negative logits are multiplied by it. Neutral: 1.
    - ``presence_penalty``: -2 to 2; subtracted from the logit of each token that occurs in the output.
      Neutral: 0.
    - ``frequency_penalty``: -2 to 2; subtracted from a token's logit once per occurrence in the output.
      Neutral: 0.
    - ``logit_bias``: (token ID, bias) pairs with unique IDs; a bias of -100 to 100 is added to the logit.
    - ``min_tokens``: minimum number of tokens to generate before the end-of-sequence token or any of
      ``stop_token_ids`` can be sampled. Neutral: 0.
    - ``stop_token_ids``: tokens that end the output without adding text to it.
    - ``num_logprobs``: number of most likely tokens per position whose log probabilities are returned, in
      addition to that of the sampled token. If it is None, no log probabilities are returned.
    - ``grammar``: the structured output format, if any.
    - ``allowed_token_ids``: the only tokens that can be sampled. Neutral: empty (all tokens).
    - ``bad_words``: texts that the output must not contain. The worker tokenizes each of them with and
      without a leading space. A token that would complete one of these token sequences cannot be sampled.
    - ``typical_p``: greater than 0, at most 1; sample from the smallest set of the most typical tokens
      (Meister et al., 2023) whose total probability is at least this value. Neutral: 1.
    - ``include_stop_str_in_output``: whether the text includes the stop string or stop token that ended it.
    - ``skip_special_tokens``: whether special tokens are omitted from the text.
    - ``num_prompt_logprobs``: number of most likely tokens per prompt position whose log probabilities are
      returned, in addition to that of the prompt token. If it is None, none are returned.
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
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    typical_p: float = 1.0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    num_prompt_logprobs: int | None = None

    @property
    def needs_version_3(self) -> bool:
        """Whether a worker that supports only version 2 of the protocol would ignore a parameter."""
        return bool(
            self.allowed_token_ids
            or self.bad_words
            or self.typical_p != 1
            or self.include_stop_str_in_output
            or not self.skip_special_tokens
            or self.num_prompt_logprobs is not None
            or (self.grammar is not None and self.grammar.needs_version_3)
        )
