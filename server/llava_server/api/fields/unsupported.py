"""OpenAI's fields (and vLLM's extensions) that this server knows and does not do.

Ignoring one silently would give another answer than asked for, so each is refused by name unless it stands
at the value that changes nothing. Names that nobody knows are ignored: clients send extras of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

__all__ = ["REFUSED", "Refusal", "RefusedFields", "only_neutral", "refused"]


class Refusal(NamedTuple):
    """The values that change nothing, and what to do instead of asking for more."""

    neutral: tuple[Any, ...]
    way_out: str


_ALL_ANSWERS = "use n and choose among the answers"
_NO_FUNCTIONS = "use tools and tool_choice"
_NO_GRAMMAR = "use response_format with a JSON schema, guided_regex or guided_choice"
_TEXT_ONLY = "this model reads text and pictures and writes text"

REFUSED: dict[str, Refusal] = {
    "best_of": Refusal((1,), _ALL_ANSWERS),
    "functions": Refusal(([],), _NO_FUNCTIONS),
    "function_call": Refusal(("none", "auto"), _NO_FUNCTIONS),
    "guided_grammar": Refusal((), _NO_GRAMMAR),
    "prompt_logprobs": Refusal((0, False), "leave it out"),
    "bad_words": Refusal(([],), "use logit_bias with the words' tokens"),
    "modalities": Refusal((["text"],), _TEXT_ONLY),
    "audio": Refusal((), _TEXT_ONLY),
    "prediction": Refusal((), "leave it out"),
    "web_search_options": Refusal((), "put what you found into the prompt"),
    "reasoning_effort": Refusal(("none",), "this model does not think before it answers"),
    "verbosity": Refusal(("medium",), "ask for a short or a long answer in the prompt"),
    "store": Refusal((False,), "answers are not stored; keep them on your side"),
    "chat_template": Refusal((), "templates are part of the served model"),
    "chat_template_kwargs": Refusal(({},), "templates are part of the served model"),
    "moderation": Refusal((), "judge texts on your side"),
    "prompt_cache_options": Refusal(({},), "leave it out: prompts are cached by their content"),
    "echo": Refusal((False,), "leave it out"),
    "image_embeds": Refusal((), "send pictures as image_url parts"),
}


def refused(name: str, table: Mapping[str, Refusal]) -> Any:
    """The field of that name, which takes null and what changes nothing."""
    refusal = table[name]
    allowed = ", ".join(["null", *(_as_json(value) for value in refusal.neutral)])
    told = f"Not done; only {allowed}. Otherwise: {refusal.way_out}."
    return Field(None, description=told, examples=list(refusal.neutral[:1]) or [None])


def only_neutral(value: Any, info: ValidationInfo, table: Mapping[str, Refusal]) -> Any:
    """The value of a field of ``refused`` if it changes nothing. Raises PydanticCustomError."""
    refusal = table[str(info.field_name)]
    if value is None or any(_is_same(value, neutral) for neutral in refusal.neutral):
        return value
    raise PydanticCustomError(
        "unsupported_parameter",
        "{name} is not supported by this server: {way_out}",
        {"name": str(info.field_name), "way_out": refusal.way_out},
    )


def _refused(name: str) -> Any:
    return refused(name, REFUSED)


def _as_json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


class RefusedFields(BaseModel):
    """Fields that may be absent, null or neutral; see ``REFUSED``. Any: what is refused is not parsed."""

    best_of: Any = _refused("best_of")
    functions: Any = _refused("functions")
    function_call: Any = _refused("function_call")
    guided_grammar: Any = _refused("guided_grammar")
    prompt_logprobs: Any = _refused("prompt_logprobs")
    bad_words: Any = _refused("bad_words")
    modalities: Any = _refused("modalities")
    audio: Any = _refused("audio")
    prediction: Any = _refused("prediction")
    web_search_options: Any = _refused("web_search_options")
    reasoning_effort: Any = _refused("reasoning_effort")
    verbosity: Any = _refused("verbosity")
    store: Any = _refused("store")
    chat_template: Any = _refused("chat_template")
    chat_template_kwargs: Any = _refused("chat_template_kwargs")
    moderation: Any = _refused("moderation")
    prompt_cache_options: Any = _refused("prompt_cache_options")
    echo: Any = _refused("echo")
    image_embeds: Any = _refused("image_embeds")

    @field_validator(*REFUSED)
    @classmethod
    def _only_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        return only_neutral(value, info, REFUSED)


def _is_same(value: Any, neutral: Any) -> bool:
    """Equality as JSON sees it: 1 and 1.0 are the same, 1 and true are not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
