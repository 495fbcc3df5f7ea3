"""The model list in Anthropic's format: model objects and pages of the list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, Literal

from llava_server.errors import ApiError
from llava_server.response_model import Count, ResponseModel, doc
from llava_server.worker_registry import ServedModel

__all__ = ["ModelInfo", "ModelInfoList", "to_model_info", "to_model_page"]


class ModelInfo(ResponseModel, kw_only=True):
    """A model in Anthropic's format."""

    type: Literal["model"] = "model"
    id: Annotated[str, doc("Name of the model.", "tiny-llava")]
    display_name: Annotated[str, doc("Name of the model.", "tiny-llava")]
    created_at: Annotated[
        str, doc("Time at which this server first found a worker for the model.", "2025-11-27T11:40:00Z")
    ]
    lifecycle: Literal["active"] = "active"
    max_input_tokens: Annotated[Count, doc("Maximum total number of prompt and output tokens.", 4096)]
    max_tokens: Annotated[Count, doc("Maximum value of max_tokens.", 4096)]


_MODEL = {
    "type": "model",
    "id": "tiny-llava",
    "display_name": "tiny-llava",
    "created_at": "2025-11-27T11:40:00Z",
    "lifecycle": "active",
    "max_input_tokens": 4096,
    "max_tokens": 4096,
}


class ModelInfoList(ResponseModel, kw_only=True):
    """A page of the model list in Anthropic's format."""

    data: Annotated[list[ModelInfo], doc("The models, sorted by name.", [_MODEL])]
    has_more: Annotated[bool, doc("Whether there are more models in the direction of the page.", False)]
    first_id: Annotated[str | None, doc("ID of the first model of the page, or null.", "tiny-llava")]
    last_id: Annotated[str | None, doc("ID of the last model of the page, or null.", "tiny-llava")]


def to_model_info(model: ServedModel) -> ModelInfo:
    """Return a model in Anthropic's format."""
    created_at = datetime.fromtimestamp(model.first_seen, timezone.utc)
    return ModelInfo(
        id=model.name,
        display_name=model.name,
        created_at=created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        max_input_tokens=model.context_length,
        max_tokens=model.context_length,
    )


def to_model_page(
    models: Sequence[ServedModel], *, after_id: str | None, before_id: str | None, limit: int
) -> ModelInfoList:
    """Return the first ``limit`` models after ``after_id``, or the last ones before ``before_id``.

    Raises ApiError (400) if an ID is unknown or both are set.
    """
    names = [model.name for model in models]
    for field, name in (("after_id", after_id), ("before_id", before_id)):
        if name is not None and name not in names:
            model_name = name[:64]
            raise ApiError("invalid_value", f"{field}: the model {model_name!a} does not exist.", param=field)
    if after_id is not None and before_id is not None:
        raise ApiError(
            "invalid_value", "after_id and before_id are both set. Use only one of them.", param="before_id"
        )
    if before_id is not None:
        found = models[: names.index(before_id)]
        page = found[max(0, len(found) - limit) :]
    else:
        found = models[names.index(after_id) + 1 :] if after_id is not None else models
        page = found[:limit]
    data = [to_model_info(model) for model in page]
    return ModelInfoList(
        data=data,
        has_more=len(found) > len(page),
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )
