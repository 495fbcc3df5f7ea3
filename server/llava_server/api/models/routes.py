"""GET /v1/models, served from memory, because many clients list the models before their first request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.models.response import Capabilities, Model, ModelList
from llava_server.api.openapi.document import Operation
from llava_server.lifespan import services_of
from llava_server.response_model import JSONResponse
from llava_server.worker_registry import ServedModel, WorkerRegistry

__all__ = ["router"]

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelId = Annotated[str, Path(description="Name of the model.", examples=["tiny-llava"])]


@router.get("", summary="List models")
@Operation("The models", ModelList, statuses=(401, 500, 503))
async def list_models(request: Request) -> Response:
    """Returns all models that any worker has served since this server started.

    If ``num_workers`` is 0, no worker currently serves the model.
    """
    registry = services_of(request).registry
    return JSONResponse(ModelList(data=[_to_response(model, registry) for model in registry.models]))


@router.get("/{model_id:path}", summary="Retrieve a model")
@Operation("The model", Model, statuses=(401, 404, 500, 503))
async def get_model(model_id: ModelId, request: Request) -> Response:
    """The model name may contain slashes."""
    registry = services_of(request).registry
    return JSONResponse(_to_response(registry.get(model_id), registry))


def _to_response(model: ServedModel, registry: WorkerRegistry) -> Model:
    return Model(
        id=model.name,
        created=model.first_seen,
        max_model_len=model.context_length,
        num_workers=registry.num_workers(model.name),
        digest=model.digest or None,
        capabilities=Capabilities(),
    )
