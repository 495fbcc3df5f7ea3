"""Models that are or were served."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llava_server.api.openapi.schema import Index, Moment, Shape, Tokens

__all__ = ["Model", "ModelList"]


class Capabilities(Shape):
    """What a model can do."""

    vision: Literal[True] = Field(description="It sees pictures: all models here do.")


class Model(Shape):
    """A model that had a worker since this server started."""

    id: str = Field(description="Its name in requests.", examples=["tiny-llava"])
    object: Literal["model"] = Field(description="model")
    created: Moment = Field(description="When this server saw it first, Unix seconds.", examples=[1764241200])
    owned_by: Literal["llava-serve"] = Field(description="llava-serve")
    max_model_len: Tokens = Field(
        description="Tokens of prompt and answer that it takes at most.", examples=[4096]
    )
    num_workers: Index = Field(description="Workers that serve it now; 0: none answers.", examples=[1])
    capabilities: Capabilities = Field(description="What it can do.")


class ModelList(Shape):
    """Every model that had a worker since this server started."""

    object: Literal["list"] = Field(description="list")
    data: list[Model] = Field(
        description="In the order of their names.",
        examples=[
            [
                {
                    "id": "tiny-llava",
                    "object": "model",
                    "created": 1764241200,
                    "owned_by": "llava-serve",
                    "max_model_len": 4096,
                    "num_workers": 1,
                    "capabilities": {"vision": True},
                }
            ]
        ],
    )
