"""Builds the bodies of chat requests. The only I/O is reading image files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict
from urllib.parse import quote

from llava_client.answer_formats import FormatName, format_question
from llava_client.images import Images, image_parts

__all__ = ["CHAT_PATH", "MODELS_PATH", "ChatOptions", "chat_body", "completion_path", "user_message"]

CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"

_NOT_SENT = frozenset({"system", "format", "timeout", "extra_body", "idempotency_key"})


class ChatOptions(TypedDict, total=False):
    """Options for a chat request. Setting an option to None is the same as omitting it.

    ``model`` defaults to the first model in the server's list. ``system`` replaces the default system prompt.
    ``format`` adds an instruction that LLaVA-1.5 was trained to follow (see ``llava_client.FORMATS``). If
    ``temperature`` is 0, the most likely token is always selected. ``logit_bias`` maps token IDs to values
    from -100 to 100. ``n`` is the number of choices to generate. ``Answer.choices`` contains all of them, but
    a stream yields only the text of the first one. ``Answer.choices`` also contains the log probabilities
    requested with ``logprobs`` and ``top_logprobs``.

    ``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens`` and ``stop_token_ids`` are extensions that
    work as in vLLM. ``response_format`` works as in OpenAI's API. It can request any JSON object, or JSON
    that matches a schema. The extensions ``guided_regex`` and ``guided_choice`` require the response to match
    a regular expression or to be one of the given strings. ``tools``, ``tool_choice`` and
    ``parallel_tool_calls`` work as in OpenAI's API. The model's calls are returned in ``Choice.tool_calls``.
    Requests whose ``service_tier`` is "flex" run after all others. If the API key allows it, requests whose
    ``service_tier`` is "priority" run before all others. If the extension ``continue_final_message`` is true,
    the response continues the last assistant message in ``messages``. Setting the extension ``cache_scope``
    to "public" shares cached prompts with other API keys.

    ``timeout`` is the maximum time to wait for more data, in seconds. Requests with the same
    ``idempotency_key`` run only once. By default, each call uses a new key, which makes its retries safe.
    ``extra_body`` is merged into the request body and can contain fields that this client does not support.
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


def completion_path(completion_id: str) -> str:
    """Return the path for resuming, retrieving or deleting a completion."""
    return f"{CHAT_PATH}/{quote(completion_id, safe='', errors='replace')}"


def user_message(text: str, image: Images = None) -> dict[str, Any]:
    """Return a user message for ``messages=[...]``, with the images before the text.

    Raises ImageError if an image is invalid.
    """
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
    """Return the body of a chat request. ``question`` becomes the next turn after ``messages``.

    Raises TypeError if neither a question nor messages are given, or if an image or a format is given without
    the question that it requires. Raises ValueError if the format is unknown, and ImageError if an image is
    invalid.
    """
    question = format_question(question, options.get("format"))
    if question is None and options.get("format"):
        name = options.get("format")
        raise TypeError(f"format={name!r} requires a question.")
    if question is None and not messages:
        raise TypeError("The request is empty. Pass a question or messages=[...].")
    if question is None and image is not None:
        raise TypeError(
            "image= requires a question. To add an image to a message, use user_message(text, image)."
        )
    turns: list[Mapping[str, Any]] = list(messages or [])
    if system := options.get("system"):
        turns.insert(0, {"role": "system", "content": system})
    if question is not None:
        turns.append(user_message(question, image))
    fields = {name: value for name, value in options.items() if value is not None and name not in _NOT_SENT}
    return {**fields, "messages": turns, **(options.get("extra_body") or {})}
