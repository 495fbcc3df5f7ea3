"""Responses about models: /api/tags, /api/show, /api/ps, /api/pull and /api/version."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from llava_server.response_model import Count, ResponseModel, doc

__all__ = [
    "CAPABILITIES",
    "OllamaModel",
    "OllamaModelDetails",
    "OllamaModelList",
    "OllamaVersion",
    "PullProgress",
    "RunningModel",
    "RunningModelList",
    "ShowResponse",
]

CAPABILITIES = ["completion", "vision", "tools"]
_NAME = "tiny-llava:latest"
_DIGEST = "69c28378c6f13b7796fbddd57302c769"
_TIME = "2026-11-28T12:00:00.000000Z"
_DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "llava",
    "families": ["llava"],
    "parameter_size": "",
    "quantization_level": "BF16",
}
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class OllamaModelDetails(ResponseModel, kw_only=True):
    """Details of a model."""

    parent_model: Annotated[str, doc("Always empty.", "")] = ""
    format: Annotated[Literal["safetensors"], doc('Format of the weights, always "safetensors".')] = (
        "safetensors"
    )
    family: Annotated[Literal["llava"], doc('Model family, always "llava".')] = "llava"
    families: Annotated[list[str], doc("Model families.", ["llava"])]
    parameter_size: Annotated[str, doc("Always empty, because workers do not report it.", "")] = ""
    quantization_level: Annotated[str, doc("Precision of the weights, in upper case.", "BF16")]


class _ModelHead(ResponseModel, kw_only=True):
    """Fields shared by lists of models."""

    name: Annotated[str, doc("Name of the model, with a tag.", _NAME)]
    model: Annotated[str, doc("Same as name.", _NAME)]
    size: Annotated[Bytes, doc("Always 0, because workers do not report the size of the weights.", 0)] = 0
    digest: Annotated[
        str, doc("Digest of the weights, precision and conversation template of the model.", _DIGEST)
    ]
    details: Annotated[OllamaModelDetails, doc("Details of the model.", _DETAILS)]


class OllamaModel(_ModelHead, kw_only=True):
    """A model that a worker has served since this server started."""

    modified_at: Annotated[
        str, doc("Time at which this server first found a worker for the model, in RFC 3339 format.", _TIME)
    ]
    capabilities: Annotated[list[str], doc("Capabilities of the model.", CAPABILITIES)]


class OllamaModelList(ResponseModel):
    """All models that any worker has served since this server started."""

    models: Annotated[list[OllamaModel], doc("The models, sorted by name.", [])]


class RunningModel(_ModelHead, kw_only=True):
    """A model that a worker currently serves."""

    expires_at: Annotated[
        str, doc("Time at which the model will be unloaded: far in the future.", "9999-12-31T23:59:59Z")
    ] = "9999-12-31T23:59:59Z"
    size_vram: Annotated[Bytes, doc("Always 0, because workers do not report it.", 0)] = 0
    context_length: Annotated[Count, doc("Maximum total number of prompt and output tokens.", 4096)]


class RunningModelList(ResponseModel):
    """All models that a worker currently serves."""

    models: Annotated[list[RunningModel], doc("The models, sorted by name.", [])]


class ShowResponse(ResponseModel, kw_only=True):
    """Information about a model."""

    modelfile: Annotated[str, doc("Modelfile that refers to the model.", f"FROM {_NAME}\n")]
    parameters: Annotated[str, doc("Always empty. See the defaults of options.", "")] = ""
    template: Annotated[str, doc("Always empty. Workers apply the model's conversation template.", "")] = ""
    license: Annotated[str, doc("Always empty.", "")] = ""
    details: Annotated[OllamaModelDetails, doc("Details of the model.", _DETAILS)]
    model_info: Annotated[
        dict[str, Any],
        doc(
            "Properties of the model, with GGUF's names.",
            {"general.architecture": "llava", "general.basename": "tiny-llava", "llava.context_length": 4096},
        ),
    ]
    capabilities: Annotated[list[str], doc("Capabilities of the model.", CAPABILITIES)]
    modified_at: Annotated[
        str, doc("Time at which this server first found a worker for the model, in RFC 3339 format.", _TIME)
    ]


class PullProgress(ResponseModel):
    """The result of a pull."""

    status: Annotated[Literal["success"], doc("The model is available.")] = "success"


class OllamaVersion(ResponseModel):
    """The version of Ollama's API."""

    version: Annotated[str, doc("Version of Ollama whose API this server implements.", "0.17.0")]
