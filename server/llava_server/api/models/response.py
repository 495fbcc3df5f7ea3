"""Model objects and the model list."""

from __future__ import annotations

from typing import Annotated, Literal

from llava_server.response_model import AlwaysTrue, Count, ResponseModel, Timestamp, doc

__all__ = ["Model", "ModelList"]


class Capabilities(ResponseModel):
    """Capabilities of a model."""

    vision: Annotated[AlwaysTrue, doc("Whether the model accepts images. Always true.")] = True


class Model(ResponseModel, kw_only=True):
    """A model that a worker has served since this server started."""

    id: Annotated[str, doc("Name of the model.", "tiny-llava")]
    object: Literal["model"] = "model"
    created: Annotated[
        Timestamp,
        doc(
            "Unix timestamp (in seconds) for when this server first found a worker for the model.", 1764241200
        ),
    ]
    owned_by: Literal["llava-serve"] = "llava-serve"
    max_model_len: Annotated[Count, doc("Maximum total number of prompt and output tokens.", 4096)]
    num_workers: Annotated[Count, doc("Number of workers that currently serve the model.", 1)]
    digest: Annotated[
        str | None,
        doc(
            "Digest of the weights, precision and conversation template of the most recently started worker. "
            "Null if the worker does not report it.",
            "69c28378c6f13b7796fbddd57302c769",
        ),
    ]
    kernels: Annotated[
        list[str],
        doc(
            "Kernels of the live workers of the model: shipped or compiled (C++), triton or torch.",
            ["shipped"],
        ),
    ]
    engine: Annotated[
        str | None,
        doc(
            "Engine of the most recently started worker: native, transformers or echo. Null if the worker "
            "does not report it.",
            "native",
        ),
    ]
    batching: Annotated[
        str | None,
        doc(
            "How the engine computes concurrent requests: continuous (prompts and responses in one pass), "
            "padded (one pass for all responses) or single (one pass for each response). Null if the worker "
            "does not report it.",
            "continuous",
        ),
    ]
    capabilities: Annotated[Capabilities, doc("Capabilities of the model.")]


_MODEL = {
    "id": "tiny-llava",
    "object": "model",
    "created": 1764241200,
    "owned_by": "llava-serve",
    "max_model_len": 4096,
    "num_workers": 1,
    "digest": "69c28378c6f13b7796fbddd57302c769",
    "kernels": ["shipped"],
    "engine": "native",
    "batching": "continuous",
    "capabilities": {"vision": True},
}


class ModelList(ResponseModel, kw_only=True):
    """All models that any worker has served since this server started."""

    object: Literal["list"] = "list"
    data: Annotated[list[Model], doc("The models, sorted by name.", [_MODEL])]
