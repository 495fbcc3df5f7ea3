"""Stored responses: the output is copied from the job's log once the job has ended."""

from __future__ import annotations

import time

import msgspec
from llava_wire.stores.responses import StoredResponse

from llava_server.api.responses.serializer import ResponsesSerializer
from llava_server.api.storage.stored import store_errors
from llava_server.errors import ApiError
from llava_server.lifespan import Services

__all__ = ["find_response", "job_id_of", "save_response"]

_SUBMIT_S = 60.0  # maximum time between adding a response and submitting its job


def job_id_of(response_id: str) -> str:
    """Return the ID of the job that generates a response, or an ID without a job."""
    number = response_id.removeprefix("resp_")
    return f"chatcmpl-{number}" if number != response_id else ""


async def find_response(services: Services, response_id: str, *, tenant: str) -> StoredResponse | None:
    """Return a stored response, with its output if it has ended. Raises ApiError (503)."""
    with store_errors():
        stored = await services.responses.find(response_id, tenant=tenant)
    return await save_response(services, stored, tenant=tenant) if stored is not None else None


async def save_response(services: Services, stored: StoredResponse, *, tenant: str) -> StoredResponse | None:
    """Store the output of a response that has ended, unless it is already stored.

    Return None if the output is lost, because the job has been deleted or has expired. Raises ApiError (503).
    """
    if stored.output is not None:
        return stored
    try:
        job = await services.controller.snapshot(job_id_of(stored.response_id), tenant, is_read=False)
    except ApiError as error:
        if error.code != "answer_not_found":
            raise
        if time.time() - stored.head.created_at < _SUBMIT_S:
            return stored
        with store_errors():
            await services.responses.remove(stored.response_id, tenant=tenant)
        return None
    serializer = ResponsesSerializer(job.outline, created_at=job.created_at)
    response = serializer.snapshot(job.state, job.events)
    if response.status in ("queued", "in_progress"):
        return stored
    head = msgspec.structs.replace(stored.head, status=response.status)
    output = msgspec.json.encode(response)
    with store_errors():
        is_stored = await services.responses.finish(stored.response_id, head, output, tenant=tenant)
    if not is_stored:
        return None
    return StoredResponse(stored.response_id, head, stored.previous_id, stored.input, output)
