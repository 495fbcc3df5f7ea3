"""The admin server, which serves metrics, health checks and worker commands on a separate port.

It shares the services of the API server in the same process. It does not require an API key, so access must
be restricted at the network level. By default, it listens on the loopback interface only. It accepts no
requests from web pages, which could use the operator's browser to reach this port.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware

from llava_server.connections import ConnectionGuard, ConnectionLimits
from llava_server.exception_handlers import EXCEPTION_HANDLERS
from llava_server.lifespan import Services, attach_services
from llava_server.middleware.head import HeadMiddleware
from llava_server.middleware.hosts import HostMiddleware, admin_host_rules
from llava_server.middleware.origins import OriginMiddleware
from llava_server.middleware.paths import PathMiddleware
from llava_server.middleware.request_id import RequestIdMiddleware
from llava_server.middleware.response_headers import ResponseHeadersMiddleware
from llava_server.middleware.server_error import ServerErrorMiddleware
from llava_server.operator import health, workers

__all__ = ["AdminServer", "create_admin_app"]

_MAX_CONNECTIONS = 32


def create_admin_app(services: Services) -> FastAPI:
    """Create the admin app from services that are already open."""
    settings = services.settings
    rules = admin_host_rules(settings.allowed_hosts, host=settings.admin_host)
    admin = FastAPI(
        title="llava-serve admin",
        middleware=[
            Middleware(RequestIdMiddleware, metrics=services.metrics),
            Middleware(ResponseHeadersMiddleware),
            Middleware(PathMiddleware),
            Middleware(HostMiddleware, rules=rules),
            Middleware(OriginMiddleware, origins=None),
            Middleware(ServerErrorMiddleware),
            Middleware(HeadMiddleware),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_url=None,
        redirect_slashes=False,
    )
    attach_services(admin, services, is_admin=True)
    for router in (health.router, health.metrics_router, workers.router):
        admin.include_router(router)
    return admin


class AdminServer(uvicorn.Server):
    """A uvicorn server that runs in the API server's event loop and leaves signals to the API server."""

    def __init__(self, services: Services) -> None:
        limits = ConnectionLimits.of(services.settings, _MAX_CONNECTIONS)
        super().__init__(
            uvicorn.Config(
                create_admin_app(services),
                http=ConnectionGuard(limits, services.metrics).protocol_class,
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
