"""POST /demo/kill-worker: kill the worker that generates a response. Available only in demo mode.

The playground of ``llava-serve up --demo`` uses this route to show that another worker continues a response.
The server only sends the request to ``up``, which kills the process if it is one of its own workers.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter
from llava_wire.errors import QueueUnavailable
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.fields.base import RequestModel
from llava_server.api.parse import parse_request
from llava_server.errors import ApiError, from_wire_error
from llava_server.lifespan import Services, services_of
from llava_server.request_context import context_of
from llava_server.response_model import JSONResponse, ResponseModel

__all__ = ["router"]

router = APIRouter(prefix="/demo", include_in_schema=False)


class KillRequest(RequestModel):
    """The response whose worker is to be killed."""

    response_id: str = Field(min_length=1, max_length=128)


class Killed(ResponseModel):
    """The worker that was killed."""

    worker_id: str


@router.post("/kill-worker", response_model=None)
async def kill_worker(request: Request) -> Response:
    """Kill the worker that generates a response. Raises ApiError (404)."""
    services = services_of(request)
    with context_of(request).body.consume() as body:
        response_id = parse_request(KillRequest, body).response_id
    worker_id = await _find_worker(services, response_id)
    path = services.settings.demo_socket
    if worker_id is None or path is None or not await _kill(path, _pid(worker_id)):
        raise ApiError(
            "worker_not_found",
            f"No worker of llava-serve up --demo is currently generating the response {response_id!a}.",
        )
    return JSONResponse(Killed(worker_id))


async def _find_worker(services: Services, job_id: str) -> str | None:
    """Return the ID of the worker that runs a job, or None. Raises ApiError (503)."""
    try:
        workers = (await services.inspector.status()).workers
    except QueueUnavailable as error:
        raise from_wire_error(error) from error
    return next((worker.heartbeat.worker_id for worker in workers if job_id in worker.num_tokens), None)


def _pid(worker_id: str) -> str:
    """Return the process ID in a worker ID, which consists of a host name, this ID and random digits."""
    return worker_id.rsplit("-", 2)[-2] if worker_id.count("-") >= 2 else ""


async def _kill(path: Path, pid: str) -> bool:
    """Request that a worker be killed, and return whether it was killed.

    Raises ApiError (404) if the socket is unavailable.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(f"{pid}\n".encode())
        reply = await reader.readline()
        writer.close()
        await writer.wait_closed()
    except OSError as error:
        raise ApiError(
            "worker_not_found",
            f"The demo socket {path} is unavailable: {error}. Restart llava-serve up --demo.",
        ) from error
    return reply.strip() == b"killed"
