"""/workers on the operator's port: who serves what, and orders to load another model or none.

An order is taken by the worker's next beat and may run for minutes, so the answer to it waits ``wait_s`` at
most; what comes of it is in the worker's description from then on, on every controller.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.commands import CommandStatus, ModelCommand
from llava_wire.operator.inspector import WorkerStatus
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_server.api.parse import parse_request
from llava_server.errors import ApiError, from_wire_error
from llava_server.lifespan import Services, services_of

__all__ = ["LoadRequest", "router"]

router = APIRouter(prefix="/workers", tags=["workers"])

_MAX_BODY_BYTES = 65536
_LOOK_S = 0.1
WorkerId = Annotated[str, Path(max_length=512)]
WaitS = Annotated[float, Query(ge=0, le=30, description="Most time to wait for what comes of it, s.")]


class LoadRequest(BaseModel):
    """A model for a worker."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: str = Field(min_length=1, max_length=512)
    precision: str | None = Field(None, min_length=1, max_length=16)


@router.get("")
async def list_workers(request: Request) -> dict[str, Any]:
    """Every live worker, with a model or without."""
    return {"workers": [_described(worker) for worker in await _fleet(services_of(request))]}


@router.get("/{worker_id}")
async def get_worker(request: Request, worker_id: WorkerId) -> dict[str, Any]:
    """One of them. Raises ApiError (404)."""
    return _described(await _find(services_of(request), worker_id))


@router.post("/{worker_id}/unload", response_model=None)
async def unload(request: Request, worker_id: WorkerId, wait_s: WaitS = 5.0) -> Response:
    """The worker hands on what runs, lets its model go, and waits without one."""
    _check_origin(request)
    return await _order(services_of(request), worker_id, ModelCommand(), wait_s)


@router.post("/{worker_id}/load", response_model=None)
async def load(request: Request, worker_id: WorkerId, wait_s: WaitS = 5.0) -> Response:
    """The same, and then it opens the model and serves it."""
    _check_origin(request)
    asked = parse_request(LoadRequest, await _body(request))
    instruction = ModelCommand(model=asked.model, precision=asked.precision)
    return await _order(services_of(request), worker_id, instruction, wait_s)


async def _order(services: Services, worker_id: str, instruction: ModelCommand, wait_s: float) -> Response:
    """200 when it is done, 202 while it is not. Raises ApiError."""
    until = time.monotonic() + wait_s
    try:
        given = await services.commands.send(worker_id, instruction)
    except QueueUnavailable as error:
        raise from_wire_error(error) from error
    if given is None:
        raise _no_worker(worker_id)
    order_id, is_ours = given
    if not is_ours:
        raise ApiError(
            "worker_has_order",
            f"the worker has another order, {order_id}, that is not done: see GET /workers/{worker_id}",
            retry_after_s=5.0,
        )
    while True:
        worker = await _find(services, worker_id)
        report = _report(worker, order_id)
        if report is not None and report.state == "refused":
            raise ApiError("order_refused", report.message)
        if report is not None and report.state == "failed":
            raise ApiError("load_failed", f"the worker is without a model now: {report.message}")
        is_done = report is not None and report.state == "done"
        if is_done or time.monotonic() >= until or services.shutdown.is_draining:
            headers = {} if is_done else {"location": f"/workers/{worker_id}"}
            return JSONResponse(_described(worker, order_id), 200 if is_done else 202, headers)
        await asyncio.sleep(_LOOK_S)


async def _fleet(services: Services) -> tuple[WorkerStatus, ...]:
    try:
        return (await services.inspector.status()).workers
    except QueueUnavailable as error:
        raise from_wire_error(error) from error


async def _find(services: Services, worker_id: str) -> WorkerStatus:
    for worker in await _fleet(services):
        if worker.heartbeat.worker_id == worker_id:
            return worker
    raise _no_worker(worker_id)


def _no_worker(worker_id: str) -> ApiError:
    return ApiError("worker_not_found", f"no worker {worker_id[:64]!a} is alive: see GET /workers")


def _report(worker: WorkerStatus, order_id: str) -> CommandStatus | None:
    report = worker.heartbeat.command
    return report if report is not None and report.command_id == order_id else None


def _described(worker: WorkerStatus, order_id: str = "") -> dict[str, Any]:
    """``order_id``: the order to tell of, else one that is not settled, else the last."""
    beat = worker.heartbeat
    return {
        "id": beat.worker_id,
        "model": beat.model or None,
        "state": _state(worker),
        "device": beat.device,
        "precision": beat.precision if beat.model else None,
        "context_length": beat.context_length,
        "capacity": beat.capacity,
        "num_running": len(worker.num_tokens),
        "started_at": beat.started_at,
        "order": _order_of(worker, order_id or worker.pending_command_id),
        "stats": beat.stats,
    }


def _state(worker: WorkerStatus) -> str:
    beat = worker.heartbeat
    if beat.model:
        return "draining" if beat.is_draining else "serving"
    return "empty" if beat.command is None or beat.command.is_finished else "loading"


def _order_of(worker: WorkerStatus, order_id: str) -> dict[str, Any] | None:
    report = worker.heartbeat.command
    if order_id and (report is None or report.command_id != order_id):
        return {"id": order_id, "state": "pending", "message": "", "progress": 0.0}
    if report is None:
        return None
    return {
        "id": report.command_id,
        "state": report.state,
        "message": report.message,
        "progress": round(report.progress, 3),
    }


def _check_origin(request: Request) -> None:
    """This port asks for no key, and the operator's browser reaches it: a web page must not give orders."""
    if "origin" in request.headers:
        raise ApiError("invalid_request", "orders are not taken from web pages: leave out the header Origin")


async def _body(request: Request) -> bytes:
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > _MAX_BODY_BYTES:
            raise ApiError("request_too_large", f"the body is larger than {_MAX_BODY_BYTES} bytes")
    return data
