"""Routes of Ollama's API that list and describe models. Models cannot be created, changed or deleted."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.request_handler import RequestHandler
from llava_server.api.ollama.model_response import (
    CAPABILITIES,
    OllamaModel,
    OllamaModelDetails,
    OllamaModelList,
    OllamaVersion,
    PullProgress,
    RunningModel,
    RunningModelList,
    ShowResponse,
)
from llava_server.api.ollama.request import PullRequest, ShowRequest
from llava_server.api.ollama.response import timestamp
from llava_server.api.ollama.served_model import find_model, tagged_name
from llava_server.api.openapi.document import Operation
from llava_server.api.parse import parse_request
from llava_server.error_response import OllamaError
from llava_server.errors import ApiError
from llava_server.generation.stream_format import NDJSON, encode_line
from llava_server.lifespan import services_of
from llava_server.response_model import JSONResponse
from llava_server.worker_registry import ServedModel

__all__ = ["router"]

router = APIRouter(tags=["ollama"])

# Clients compare this version with the version that introduced a feature, so it is not the server's version.
_API_VERSION = "0.17.0"
_READ = (401, 500, 503)
_FIND = (400, 401, 404, 408, 413, 415, 429, 500, 503)


@router.get("/api/tags", summary="List models (Ollama)")
@router.head("/api/tags", include_in_schema=False)
@Operation("The models", OllamaModelList, error=OllamaError, statuses=_READ)
async def list_models(request: Request) -> Response:
    """Returns all models that any worker has served since this server started."""
    return JSONResponse(OllamaModelList([_listed(model) for model in services_of(request).registry.models]))


@router.get("/api/ps", summary="List models that are currently served (Ollama)")
@Operation("The models", RunningModelList, error=OllamaError, statuses=_READ)
async def list_running_models(request: Request) -> Response:
    """Returns the models with at least one worker that accepts requests."""
    registry = services_of(request).registry
    running = [model for model in registry.models if registry.num_workers(model.name)]
    return JSONResponse(RunningModelList([_running(model) for model in running]))


@router.get("/api/version", summary="Get the version of Ollama's API")
@router.head("/api/version", include_in_schema=False)
@Operation("The version", OllamaVersion, error=OllamaError, statuses=_READ)
async def get_version() -> Response:
    """Clients use the version to detect features, so it is a version of Ollama, not of this server."""
    return JSONResponse(OllamaVersion(_API_VERSION))


@router.post("/api/show", summary="Describe a model (Ollama)")
@Operation("The description", ShowResponse, error=OllamaError, request=ShowRequest, statuses=_FIND)
async def show(request: Request) -> Response:
    """Returns the model's capabilities, context length and precision."""
    handler = RequestHandler(request)
    with handler.body() as raw:
        name = (await handler.parse(raw, lambda body: parse_request(ShowRequest, body))).model_name
    return JSONResponse(_described(await find_model(handler.services.registry, name)))


@router.post("/api/pull", summary="Check that a model is available (Ollama)")
@Operation(
    "The result, as a stream unless stream is false",
    PullProgress,
    stream=PullProgress,
    stream_type=NDJSON,
    error=OllamaError,
    request=PullRequest,
    statuses=_FIND,
)
async def pull(request: Request) -> Response:
    """Succeeds if a worker serves the model. The server does not download models."""
    handler = RequestHandler(request)
    with handler.body() as raw:
        body = await handler.parse(raw, lambda raw_body: parse_request(PullRequest, raw_body))
    await find_model(handler.services.registry, body.model_name)
    return JSONResponse(PullProgress()) if body.stream is False else _one_line(PullProgress())


@router.post("/api/create", include_in_schema=False)
@router.post("/api/copy", include_in_schema=False)
@router.post("/api/push", include_in_schema=False)
@router.post("/api/blobs/{digest}", include_in_schema=False)
@router.head("/api/blobs/{digest}", include_in_schema=False)
@router.delete("/api/delete", include_in_schema=False)
async def change_models(request: Request) -> Response:
    """Reject a request to create, copy, upload or delete a model."""
    path = request.scope["route"].path
    raise ApiError(
        "unsupported_operation",
        f"{path} is not supported. Models are those that workers serve. To serve another model, start a "
        "worker with 'llava-serve worker'.",
    )


def _one_line(body: Struct) -> Response:
    return Response(encode_line(body), media_type=NDJSON)


def _listed(model: ServedModel) -> OllamaModel:
    name = tagged_name(model)
    return OllamaModel(
        name=name,
        model=name,
        digest=_digest(model),
        details=_details(model),
        modified_at=timestamp(model.first_seen),
        capabilities=CAPABILITIES,
    )


def _running(model: ServedModel) -> RunningModel:
    name = tagged_name(model)
    return RunningModel(
        name=name,
        model=name,
        digest=_digest(model),
        details=_details(model),
        context_length=model.context_length,
    )


def _described(model: ServedModel) -> ShowResponse:
    return ShowResponse(
        modelfile=f"FROM {tagged_name(model)}\n",
        details=_details(model),
        model_info={
            "general.architecture": "llava",
            "general.basename": model.name,
            "llava.context_length": model.context_length,
            "llava.vision.image_size": model.image_spec.side,
            "llava.vision.tokens_per_tile": model.image_spec.tokens_per_tile,
        },
        capabilities=CAPABILITIES,
        modified_at=timestamp(model.first_seen),
    )


def _details(model: ServedModel) -> OllamaModelDetails:
    return OllamaModelDetails(families=["llava"], quantization_level=model.precision.upper())


def _digest(model: ServedModel) -> str:
    """Return the digest. It is never empty, because Ollama's command line shows its first 12 characters."""
    return model.digest or hashlib.sha256(model.fingerprint().encode()).hexdigest()
