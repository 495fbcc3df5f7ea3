"""Models that are or were served."""

from __future__ import annotations

from typing import Annotated, Literal

from llava_server.response_model import AlwaysTrue, Count, ResponseModel, Timestamp, doc

__all__ = ["Model", "ModelList"]


class Capabilities(ResponseModel):
    """What a model can do."""

    vision: Annotated[AlwaysTrue, doc("It sees pictures: all models here do.")] = True


class Model(ResponseModel, kw_only=True):
    """A model that had a worker since this server started."""

    id: Annotated[str, doc("Its name in requests.", "tiny-llava")]
    object: Literal["model"] = "model"
    created: Annotated[Timestamp, doc("When this server saw it first, Unix seconds.", 1764241200)]
    owned_by: Literal["llava-serve"] = "llava-serve"
    max_model_len: Annotated[Count, doc("Tokens of prompt and answer that it takes at most.", 4096)]
    num_workers: Annotated[Count, doc("Workers that serve it now; 0: none answers.", 1)]
    capabilities: Annotated[Capabilities, doc("What it can do.")]


_MODEL = {
    "id": "tiny-llava",
    "object": "model",
    "created": 1764241200,
    "owned_by": "llava-serve",
    "max_model_len": 4096,
    "num_workers": 1,
    "capabilities": {"vision": True},
}


class ModelList(ResponseModel, kw_only=True):
    """Every model that had a worker since this server started."""

    object: Literal["list"] = "list"
    data: Annotated[list[Model], doc("In the order of their names.", [_MODEL])]
