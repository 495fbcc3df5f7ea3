"""The responses of the health endpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from llava_server.response_model import ResponseModel, doc

__all__ = ["Failed", "Live", "NotReady", "Ready"]


class Live(ResponseModel):
    """The process is of use."""

    status: Literal["ok"] = "ok"


class Failed(ResponseModel, kw_only=True):
    """The process is of no use any more: restart it."""

    status: Literal["failed"] = "failed"
    reasons: Annotated[list[str], doc("What ended its loop.", ["the loop has ended"], min_length=1)]


class Ready(ResponseModel, kw_only=True):
    """Requests may be sent here."""

    status: Literal["ready"] = "ready"
    models: Annotated[list[str], doc("The models that have been seen.", ["tiny-llava"], min_length=1)]


class NotReady(ResponseModel, kw_only=True):
    """No requests should be sent here now."""

    status: Literal["not ready"] = "not ready"
    reasons: Annotated[list[str], doc("Why, for people.", ["no worker has been seen yet"], min_length=1)]
