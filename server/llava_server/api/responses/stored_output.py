"""Stored responses: the output is copied from the job's log once the job has ended."""

from __future__ import annotations

from functools import partial

from llava_wire.controller_side.query_results import JobSnapshot
from llava_wire.stores.responses import StoredResponse

from llava_server.api.chat.request_handler import run_parser
from llava_server.api.responses.serializer import ResponsesSerializer
from llava_server.api.storage.outputs import EndedOutput, save_output
from llava_server.api.storage.stored import store_errors
from llava_server.generation.collect import num_event_bytes
from llava_server.json_pieces import encode_in_pieces
from llava_server.lifespan import Services

__all__ = ["find_response", "job_id_of", "save_response"]


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
    """Store the output of a response that has ended. See ``save_output``."""

    async def read_output() -> EndedOutput | None:
        job = await services.controller.snapshot(job_id_of(stored.response_id), tenant, is_read=False)
        serializer = ResponsesSerializer(job.outline, created_at=job.created_at)
        encode = partial(_ended_output, serializer, job)
        return await run_parser(services, tenant, num_event_bytes(job.events), encode)

    return await save_output(services, stored, read_output, tenant=tenant)


def _ended_output(serializer: ResponsesSerializer, job: JobSnapshot) -> EndedOutput | None:
    response = serializer.snapshot(job.state, job.events)
    if response.status in ("queued", "in_progress"):
        return None
    return EndedOutput(response.status, encode_in_pieces(response))
