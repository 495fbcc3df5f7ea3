"""Routes for /workers on the admin port: list live workers, and load or unload their models.

A worker reads a command at its next heartbeat, and executing the command can take minutes. Before it
responds, the server waits up to ``wait_s`` seconds for the command to finish. After that, every server
reports the command's status in the worker's description.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.messages.load_command import CommandStatus, ModelCommand
from llava_wire.operator.inspector import WorkerStatus
from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.fields.base import RequestModel
from llava_server.api.parse import parse_request
from llava_server.errors import ApiError, from_wire_error
from llava_server.lifespan import Services, services_of
from llava_server.response_model import JSONResponse, ResponseModel

__all__ = ["LoadRequest", "router"]

router = APIRouter(prefix="/workers", tags=["workers"])

_MAX_BODY_BYTES = 65536
_POLL_S = 0.1
WorkerId = Annotated[str, Path(max_length=512)]
WaitS = Annotated[
    float, Query(ge=0, le=30, description="Maximum time to wait for the command to finish, in seconds.")
]


class LoadRequest(RequestModel):
    """A command to load a model."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=512)
    precision: str | None = Field(None, min_length=1, max_length=16)


class Command(ResponseModel):
    """The status of a command."""

    id: str
    state: Literal["pending", "running", "done", "refused", "failed"]
    message: str = ""
    progress: float = 0.0


class Kernels(ResponseModel):
    """The kernels of a worker's model."""

    source: str  # "shipped" or "compiled" (C++), "triton" or "torch"
    variant: str  # instruction set of C++ kernels
    fallback_reason: str  # why torch kernels replace faster ones; empty if they do not


class Worker(ResponseModel):
    """A live worker, with or without a model."""

    id: str
    model: str | None
    state: Literal["serving", "draining", "loading", "empty"]
    device: str
    precision: str | None
    kernels: Kernels | None  # null without a model, for the echo model and in older releases
    model_digest: str | None
    context_length: int
    capacity: int
    num_running: int
    started_at: float
    order: Command | None  # called "order" in the API
    stats: dict[str, float]


class WorkerList(ResponseModel):
    """All live workers."""

    workers: list[Worker]


@router.get("", response_model=None)
async def list_workers(request: Request) -> Response:
    """Return all live workers, with or without a model."""
    workers = await _live_workers(services_of(request))
    return JSONResponse(WorkerList([_to_response(worker) for worker in workers]))


@router.get("/{worker_id}", response_model=None)
async def get_worker(request: Request, worker_id: WorkerId) -> Response:
    """Return one live worker. Raises ApiError (404)."""
    return JSONResponse(_to_response(await _find(services_of(request), worker_id)))


@router.post("/{worker_id}/unload", response_model=None)
async def unload(request: Request, worker_id: WorkerId, wait_s: WaitS = 5.0) -> Response:
    """Instruct a worker to unload its model.

    Other workers resume the requests that this worker was running.
    """
    return await _run_command(services_of(request), worker_id, ModelCommand(), wait_s)


@router.post("/{worker_id}/load", response_model=None)
async def load(request: Request, worker_id: WorkerId, wait_s: WaitS = 5.0) -> Response:
    """Instruct a worker to unload its model, and then to load and serve another one."""
    load_request = parse_request(LoadRequest, await _read_body(request))
    command = ModelCommand(model=load_request.model, precision=load_request.precision)
    return await _run_command(services_of(request), worker_id, command, wait_s)


async def _run_command(services: Services, worker_id: str, command: ModelCommand, wait_s: float) -> Response:
    """Send a command and wait for it to finish. Raises ApiError.

    Return 200 if the command finishes within ``wait_s`` seconds, otherwise 202.
    """
    deadline = time.monotonic() + wait_s
    command_id = await _send(services, worker_id, command)
    while True:
        worker = await _find(services, worker_id)
        status = _status_of(worker, command_id)
        if status is not None and status.state == "refused":
            raise ApiError("order_refused", status.message)
        if status is not None and status.state == "failed":
            raise ApiError(
                "load_failed", f"The command failed, and the worker no longer has a model: {status.message}"
            )
        if status is not None and status.state == "done":
            await services.registry.refresh()  # else the next request could wait for an unloaded model
            return JSONResponse(_to_response(worker, command_id))
        if time.monotonic() >= deadline or services.shutdown.is_draining:
            headers = {"location": f"/workers/{worker_id}"}
            return JSONResponse(_to_response(worker, command_id), 202, headers)
        await asyncio.sleep(_POLL_S)


async def _send(services: Services, worker_id: str, command: ModelCommand) -> str:
    """Send a command and return its ID. Raises ApiError (404, 409, 503)."""
    try:
        sent = await services.commands.send(worker_id, command)
    except QueueUnavailable as error:
        raise from_wire_error(error) from error
    if sent is None:
        raise _not_found(worker_id)
    command_id, is_accepted = sent
    if not is_accepted:
        raise ApiError(
            "worker_has_order",
            f"The worker has not finished the previous command (ID {command_id}). "
            f"Check its status with GET /workers/{worker_id}, then retry.",
            retry_after_s=5.0,
        )
    return command_id


async def _live_workers(services: Services) -> tuple[WorkerStatus, ...]:
    try:
        return (await services.inspector.status()).workers
    except QueueUnavailable as error:
        raise from_wire_error(error) from error


async def _find(services: Services, worker_id: str) -> WorkerStatus:
    for worker in await _live_workers(services):
        if worker.heartbeat.worker_id == worker_id:
            return worker
    raise _not_found(worker_id)


def _not_found(worker_id: str) -> ApiError:
    quoted_id = worker_id[:64]
    return ApiError(
        "worker_not_found", f"No live worker has the ID {quoted_id!a}. List all workers with GET /workers."
    )


def _status_of(worker: WorkerStatus, command_id: str) -> CommandStatus | None:
    """Return the status that the worker reports for a command, or None if it has not read the command yet."""
    status = worker.heartbeat.command
    return status if status is not None and status.command_id == command_id else None


def _to_response(worker: WorkerStatus, command_id: str = "") -> Worker:
    """Return the description of a worker.

    ``command_id`` selects the command to include. The default is the pending command if there is one,
    otherwise the last command.
    """
    beat = worker.heartbeat
    return Worker(
        id=beat.worker_id,
        model=beat.model or None,
        state=_state_of(worker),
        device=beat.device,
        precision=beat.precision if beat.model else None,
        kernels=_kernels(beat),
        model_digest=beat.model_digest or None,
        context_length=beat.context_length,
        capacity=beat.capacity,
        num_running=len(worker.num_tokens),
        started_at=beat.started_at,
        order=_command_response(worker, command_id or worker.pending_command_id),
        stats=beat.stats,
    )


def _kernels(beat: Heartbeat) -> Kernels | None:
    kernels = beat.kernels
    return Kernels(kernels.source, kernels.variant, kernels.fallback_reason) if kernels else None


def _state_of(worker: WorkerStatus) -> Literal["serving", "draining", "loading", "empty"]:
    beat = worker.heartbeat
    if beat.model:
        return "draining" if beat.is_draining else "serving"
    return "empty" if beat.command is None or beat.command.is_finished else "loading"


def _command_response(worker: WorkerStatus, command_id: str) -> Command | None:
    status = worker.heartbeat.command
    if command_id and (status is None or status.command_id != command_id):
        return Command(command_id, "pending")
    if status is None:
        return None
    return Command(status.command_id, status.state, status.message, round(status.progress, 3))


async def _read_body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise ApiError(
                "request_too_large",
                f"The request body exceeds the limit of {_MAX_BODY_BYTES} bytes. Send only the fields of the "
                "command.",
            )
    return body
