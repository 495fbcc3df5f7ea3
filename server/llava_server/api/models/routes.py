"""GET /v1/models: answered from memory, so that clients that ask first are never kept waiting."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request

from llava_server.api.models.response import Model, ModelList
from llava_server.api.openapi.document import answers_with
from llava_server.lifespan import services_of
from llava_server.worker_registry import ServedModel, WorkerRegistry

__all__ = ["router"]

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelId = Annotated[str, Path(description="The name of the model.", examples=["tiny-llava"])]


@router.get(
    "",
    summary="List the models",
    response_model=None,
    responses=answers_with(ModelList, "The models", statuses=(401, 500)),
)
async def list_models(request: Request) -> dict[str, Any]:
    """Every model that had a worker since this server started; ``num_workers`` 0 means none at the moment."""
    registry = services_of(request).registry
    return {"object": "list", "data": [_described(model, registry) for model in registry.models]}


@router.get(
    "/{model_id:path}",
    summary="Describe one model",
    response_model=None,
    responses=answers_with(Model, "The model", statuses=(401, 404, 500)),
)
async def get_model(model_id: ModelId, request: Request) -> dict[str, Any]:
    """Model names may hold slashes."""
    registry = services_of(request).registry
    return _described(registry.get(model_id), registry)


def _described(model: ServedModel, registry: WorkerRegistry) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.first_seen,
        "owned_by": "llava-serve",
        "max_model_len": model.context_length,
        "num_workers": registry.num_workers(model.name),
        "capabilities": {"vision": True},
    }
