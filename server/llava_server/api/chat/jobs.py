"""Build the jobs of a chat, one for each choice. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from llava_wire.messages.job import ImageRef, Job, Message, Role

from llava_server.api.chat.request import AssistantMessage, ChatRequest, ImagePart, TextPart, ToolMessage
from llava_server.api.fields.messages import ChatMessage
from llava_server.api.fields.sampling import SEED_BITS
from llava_server.api.handler import ImageSource
from llava_server.api.job_builder import digest, estimate_cost, new_job_id, with_choices
from llava_server.api.tools.prompt import calls_text, result_text, tools_text
from llava_server.images.loader import PreprocessedImage
from llava_server.worker_registry import ServedModel

__all__ = ["image_sources", "job_id_for_key", "to_jobs"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "user",
    "assistant": "assistant",
}


def job_id_for_key(tenant: str, idempotency_key: str) -> str:
    """Return the job id of an idempotency key, the same on every controller."""
    return f"chatcmpl-{digest(tenant, idempotency_key).hex()[:32]}"


def image_sources(request: ChatRequest) -> list[ImageSource]:
    """Return the images of a chat in reading order."""
    return [
        ImageSource(
            f"messages[{m}].content[{p}].image_url.url", part.image_url.url, part.image_url.detail == "low"
        )
        for m, message in enumerate(request.messages)
        if message.content is not None and not isinstance(message.content, str)
        for p, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def to_jobs(
    request: ChatRequest,
    images: Sequence[PreprocessedImage],
    model: ServedModel,
    *,
    tenant: str,
    ttl_s: float,
    idempotency_key: str | None = None,
) -> list[Job]:
    """Return a job for each choice; ``images`` are in the order of ``image_sources``.

    With an ``idempotency_key`` the same request has the same jobs on every controller.
    """
    messages = _messages(request, [image.ref for image in images])
    max_tokens = request.max_output_tokens
    sampling = request.to_sampling_params(
        max_tokens=None if max_tokens is None else min(max_tokens, model.context_length),
        stop=request.stop_strings,
        ignore_eos=bool(request.ignore_eos),
        num_logprobs=request.num_logprobs,
        grammar=request.grammar,
    )
    if idempotency_key is not None and request.seed is None:
        seed = int.from_bytes(digest(tenant, idempotency_key, "seed")[:8], "big") >> (64 - SEED_BITS)
        sampling = msgspec.structs.replace(sampling, seed=seed)
    first = Job(
        job_id=new_job_id() if idempotency_key is None else job_id_for_key(tenant, idempotency_key),
        model=model.name,
        tenant=tenant,
        messages=messages,
        sampling=sampling,
        cost=estimate_cost(messages, sampling, model),
        ttl_s=ttl_s,
        priority=request.job_priority,
        cache_scope=request.cache_scope or "tenant",
        form="continued" if request.continue_final_message else "chat",
    )
    return with_choices(first, request.num_choices)


def _messages(request: ChatRequest, refs: Sequence[ImageRef]) -> tuple[Message, ...]:
    """Return the messages in the model's roles.

    Results of tool calls become user messages, joined with the next one; tools are described in the system
    message.
    """
    remaining = iter(refs)
    messages: list[Message] = []
    is_after_result = False
    for message in request.messages:
        is_result = isinstance(message, ToolMessage)
        role: Role = _ROLES[message.role]
        turn = Message(role, tuple(_parts(message, remaining)))
        if is_after_result and role == "user":
            turn = Message(role, messages.pop().parts + turn.parts)
        messages.append(turn)
        is_after_result = is_result
    tools = tools_text(request)
    if tools and messages[0].role == "system":
        messages[0] = Message("system", (*messages[0].parts, tools))
    elif tools:
        messages.insert(0, Message("system", (tools,)))
    return tuple(messages)


def _parts(message: ChatMessage, remaining: Iterator[ImageRef]) -> Iterator[str | ImageRef]:
    if isinstance(message, ToolMessage):
        content = message.content
        texts = (
            [content] if isinstance(content, str) else [p.text for p in content if isinstance(p, TextPart)]
        )
        yield result_text("\n".join(texts))
    elif isinstance(message.content, str):
        yield message.content
    else:
        for part in message.content or ():
            yield next(remaining) if isinstance(part, ImagePart) else part.text
    if isinstance(message, AssistantMessage) and message.tool_calls:
        yield calls_text(message.tool_calls)
