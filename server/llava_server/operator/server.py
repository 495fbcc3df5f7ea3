"""The operator's own port: metrics, health, workers; on loopback unless told otherwise, and never the API.

It shows the state of the app beside it and asks for no key: who may reach it is the network's to decide.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware

from llava_server.middleware.request_id import ErrorNet, RequestIds
from llava_server.operator import health, workers

__all__ = ["AdminServer", "create_admin_app"]


def create_admin_app(app: FastAPI) -> FastAPI:
    """Shares the state of ``app``, whose lifespan it does not run."""
    admin = FastAPI(
        title="llava-serve admin",
        middleware=[Middleware(RequestIds), Middleware(ErrorNet)],
        exception_handlers=dict(app.exception_handlers),
        openapi_url=None,
        redirect_slashes=False,
    )
    admin.state = app.state
    for router in (health.router, health.metrics_router, workers.router):
        admin.include_router(router)
    return admin


class AdminServer(uvicorn.Server):
    """Runs beside the API's server, in its loop; signals are that one's."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                create_admin_app(app),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
