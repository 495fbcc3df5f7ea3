"""How the server is, for machines that watch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llava_server.api.openapi.schema import Shape

__all__ = ["Failed", "Live", "NotReady", "Ready"]


class Live(Shape):
    """The process is of use."""

    status: Literal["ok"] = Field(description="ok")


class Failed(Shape):
    """The process is of no use any more: restart it."""

    status: Literal["failed"] = Field(description="failed")
    reasons: list[str] = Field(
        min_length=1, description="What ended its loop.", examples=[["the loop has ended"]]
    )


class Ready(Shape):
    """Requests may be sent here."""

    status: Literal["ready"] = Field(description="ready")
    models: list[str] = Field(
        min_length=1, description="The models that have been seen.", examples=[["tiny-llava"]]
    )


class NotReady(Shape):
    """No requests should be sent here now."""

    status: Literal["not ready"] = Field(description="not ready")
    reasons: list[str] = Field(
        min_length=1, description="Why, for people.", examples=[["no worker has been seen yet"]]
    )
