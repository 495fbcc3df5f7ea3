"""Stored chat completions: the messages, and the completion once all of its jobs have ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
from llava_wire.messages.event import Event
from llava_wire.stores.responses import ResponseHead, StoredResponse

from llava_server.api.chat.job_builder import choice_id
from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.request_handler import run_encoder
from llava_server.api.chat.serializer import ChatSerializer
from llava_server.api.storage.outputs import EndedOutput, save_output
from llava_server.api.storage.paging import Order
from llava_server.api.storage.stored import reserve_stored, store_errors
from llava_server.errors import ApiError, response_not_found
from llava_server.generation.collect import CollectedChoice, num_event_bytes
from llava_server.lifespan import Services
from llava_server.loaded_data import LoadedBytes

__all__ = ["completion_text", "find_chat", "list_chats", "new_chat_record", "save_chat"]

_LIST_PAGE = 50
_MIB = 2**20


def new_chat_record(chat: ChatRequest, job_id: str) -> StoredResponse:
    """Return the record of a new chat completion."""
    messages = [message.model_dump(mode="python", exclude_none=True) for message in chat.messages]
    head = ResponseHead(
        model=chat.model,
        created_at=int(time.time()),
        num_choices=chat.num_choices,
        metadata=chat.metadata or {},
    )
    return StoredResponse(job_id, head, "", msgspec.json.encode(messages), None)


async def find_chat(services: Services, job_id: str, loaded: LoadedBytes, *, tenant: str) -> StoredResponse:
    """Return a stored completion that has ended. Raises ApiError (404, 429, 503)."""
    if job_id[:9] != "chatcmpl-":
        raise response_not_found()
    await reserve_stored(services.responses, job_id, loaded, tenant=tenant)
    with store_errors():
        stored = await services.responses.find(job_id, tenant=tenant)
    saved = await save_chat(services, stored, tenant=tenant) if stored is not None else None
    if saved is None or saved.head.status != "completed":
        raise response_not_found()
    return saved


async def save_chat(services: Services, stored: StoredResponse, *, tenant: str) -> StoredResponse | None:
    """Store the output of a completion whose jobs have ended. See ``save_output``.

    A completion has the status "failed" and no output if any of its jobs failed or was cancelled.
    """

    async def read_output() -> EndedOutput | None:
        jobs = [
            await services.controller.snapshot(job_id, tenant, is_read=False) for job_id in _job_ids(stored)
        ]
        choices = [_collected(job.events) for job in jobs]
        finals = [choice.last.final for choice in choices]
        if any(final is None and job.state != "cancelled" for final, job in zip(finals, jobs, strict=True)):
            return None
        if any(final is None or final.error is not None for final in finals):
            return EndedOutput("failed", b"")
        first = jobs[0].outline
        fingerprint = services.registry.fingerprint(first.model, jobs[0].model_digest)
        serializer = ChatSerializer(first, fingerprint, created_at=jobs[0].created_at)
        build = partial(serializer.to_response, choices)
        data = await run_encoder(services, tenant, num_event_bytes(choices), build)
        return EndedOutput("completed", data)

    return await save_output(services, stored, read_output, tenant=tenant)


async def list_chats(
    services: Services,
    loaded: LoadedBytes,
    *,
    tenant: str,
    after: str,
    limit: int,
    order: Order,
    model: str | None,
    metadata: Mapping[str, str],
) -> tuple[list[StoredResponse], bool]:
    """Return up to ``limit`` completions with this model and metadata, and whether there may be more.

    The list ends earlier if the completions reach the maximum size of a request body. Raises ApiError (429,
    503).
    """
    found: list[StoredResponse] = []
    max_bytes = loaded.num_bytes + services.settings.max_body_mb * _MIB
    while True:
        with store_errors():
            page = await services.responses.list_responses(
                tenant=tenant, order=order, after=after, limit=_LIST_PAGE
            )
        for each in page:
            head = each.head
            if model not in (None, head.model) or not metadata.items() <= head.metadata.items():
                continue
            try:
                found.append(await find_chat(services, each.response_id, loaded, tenant=tenant))
            except ApiError as error:
                if error.code != "answer_not_found":  # has not ended yet, or was removed
                    raise
            if len(found) > limit or loaded.num_bytes > max_bytes:
                return found[:limit], True
        if len(page) < _LIST_PAGE:
            return found, False
        after = page[-1].response_id


def completion_text(stored: StoredResponse) -> bytes:
    """Return the JSON text of the completion of a record that has an output.

    The stored output is not decoded. It contains no metadata, because the metadata can change.
    """
    return b'%b,"metadata":%b}' % ((stored.output or b"")[:-1], msgspec.json.encode(stored.head.metadata))


def _job_ids(stored: StoredResponse) -> list[str]:
    first = stored.response_id
    return [first, *(choice_id(first, index) for index in range(1, stored.head.num_choices))]


def _collected(events: Sequence[Event]) -> CollectedChoice:
    choice = CollectedChoice()
    for event in events:
        choice.add(event)
    return choice
