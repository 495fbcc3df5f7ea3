"""Response bodies of the health endpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["Failed", "Live", "Load", "NotReady", "Ready", "Version"]


class Live(ResponseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Failed(ResponseModel, kw_only=True):
    """The process has failed and must be restarted."""

    status: Literal["failed"] = "failed"
    reasons: Annotated[
        list[str],
        doc(
            "The errors that stopped the controller loop.",
            ["The controller loop failed with RuntimeError. Restart the server."],
            min_length=1,
        ),
    ]


class Ready(ResponseModel, kw_only=True):
    """The server accepts requests."""

    status: Literal["ready"] = "ready"
    models: Annotated[
        list[str],
        doc("The models that have been served since the server started.", ["tiny-llava"], min_length=1),
    ]
    kernels: Annotated[
        dict[str, list[str]],
        doc(
            "Kernels of the live workers of each model: shipped or compiled (C++), triton or torch.",
            {"tiny-llava": ["shipped"]},
        ),
    ]
    warnings: Annotated[
        list[str],
        doc(
            "Problems that delay requests, such as workers without fast kernels or an unavailable shard.", []
        ),
    ]


class NotReady(ResponseModel, kw_only=True):
    """The server is not ready for requests."""

    status: Literal["not ready"] = "not ready"
    reasons: Annotated[
        list[str],
        doc("Human-readable reasons.", ["No worker has registered yet."], min_length=1),
    ]


class Version(ResponseModel, kw_only=True):
    """The version of the server."""

    version: Annotated[str, doc("Version of llava-serve.", "0.1.0")]


class Load(ResponseModel, kw_only=True):
    """The load of the server."""

    server_load: Annotated[
        Count, doc("Number of outputs that this server is currently sending or waiting for.", 3)
    ]
