"""A chat request's body from what the caller gave. Pure: sends nothing; reads only picture files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict
from urllib.parse import quote

from llava_client.answer_formats import FormatName, format_question
from llava_client.images import Images, image_parts

__all__ = ["CHAT_PATH", "MODELS_PATH", "ChatOptions", "answer_path", "chat_body", "user_message"]

CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"

_NOT_SENT = frozenset({"system", "format", "timeout", "extra_body", "idempotency_key"})


class ChatOptions(TypedDict, total=False):
    """How to answer; None means the same as leaving it out.

    ``model`` None is the first one that the server lists. ``system`` replaces the model's own system text.
    ``format`` asks for a kind of answer in the words that LLaVA-1.5 was trained with (``formats``).
    ``temperature`` 0 always takes the likeliest token. ``logit_bias`` is token id -> -100 to 100.
    ``n`` asks for so many answers (``Answer.choices``), of which a stream yields the first one's text.
    ``logprobs`` and ``top_logprobs`` come in ``Answer.choices``. ``top_k``, ``min_p``,
    ``repetition_penalty``, ``min_tokens`` and ``stop_token_ids`` are extensions of this server and vLLM's.
    ``response_format`` is OpenAI's: {"type": "json_object"}, or a JSON schema that the answer keeps to;
    ``guided_regex`` and ``guided_choice`` (extensions) hold it to an expression or to one of some strings.
    ``tools``, ``tool_choice`` and ``parallel_tool_calls`` are OpenAI's; calls come in ``Choice.tool_calls``.
    ``service_tier`` "priority" goes before and "flex" behind other requests. ``continue_final_message``
    (extension) goes on with the answer that ``messages`` ends with. ``cache_scope`` (extension) "public"
    shares computed prompts with others.
    ``timeout`` (seconds) is the longest silence allowed. Requests with the same ``idempotency_key`` are one
    request, answered once; None makes a new key for each call, so that its own retries are safe.
    ``extra_body`` goes into the request as it is, for fields that this client does not know.
    """

    model: str | None
    system: str | None
    format: FormatName | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    min_tokens: int | None
    stop_token_ids: Sequence[int] | None
    n: int | None
    logprobs: bool | None
    top_logprobs: int | None
    response_format: Mapping[str, Any] | None
    guided_regex: str | None
    guided_choice: Sequence[str] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    service_tier: str | None
    continue_final_message: bool | None
    cache_scope: str | None
    timeout: float | None
    idempotency_key: str | None
    extra_body: Mapping[str, Any] | None


def answer_path(completion_id: str) -> str:
    """Where an answer can be read on, and cancelled."""
    return f"{CHAT_PATH}/{quote(completion_id, safe='')}"


def user_message(text: str, image: Images = None) -> dict[str, Any]:
    """A user's turn with its pictures before its text, for ``messages=[...]``. Raises ImageError."""
    parts = image_parts(image)
    if not parts:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def chat_body(
    question: str | None,
    image: Images,
    messages: Sequence[Mapping[str, Any]] | None,
    options: ChatOptions,
) -> dict[str, Any]:
    """The JSON of a chat request: ``messages`` first, then ``question`` as the next turn.

    Raises TypeError: nothing was asked, or a picture or a format has no question; ValueError: a format that
    does not exist. Raises ImageError.
    """
    question = format_question(question, options.get("format"))
    if question is None and options.get("format"):
        raise TypeError(f"format={options.get('format')!r} goes with a question: give one")
    if question is None and not messages:
        raise TypeError("nothing to ask: give a question, or messages=[...]")
    if question is None and image is not None:
        raise TypeError("image= goes with a question: put it into a message with user_message(text, image)")
    turns: list[Mapping[str, Any]] = list(messages or [])
    if system := options.get("system"):
        turns.insert(0, {"role": "system", "content": system})
    if question is not None:
        turns.append(user_message(question, image))
    fields = {name: value for name, value in options.items() if value is not None and name not in _NOT_SENT}
    return {**fields, "messages": turns, **(options.get("extra_body") or {})}
