"""Routes for the playground: static files, read once and served with a strict content security policy."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llava_server.errors import ApiError
from llava_server.lifespan import services_of
from llava_server.static_file import StaticFile

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_DEMO_INDEX = "demo.html"  # the page of a server in demo mode, which offers to kill workers
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}


@router.api_route("/", methods=["GET", "HEAD"], response_model=None)
async def index(request: Request) -> Response:
    is_demo = services_of(request).settings.demo_socket is not None
    return _file_response(request, _DEMO_INDEX if is_demo else "index.html")


@router.get("/playground/{name}", response_model=None)
async def asset(name: str, request: Request) -> Response:
    return _file_response(request, name)


def _file_response(request: Request, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise ApiError("unknown_url", "The playground has no file with this name.")
    return file.response(request)


@cache
def _files() -> dict[str, StaticFile]:
    """Return all static files, keyed by name. Names sent by clients are used only as keys, never as paths."""
    static_files = {}
    for entry in (files("llava_server") / "playground").iterdir():
        media_type = _MEDIA_TYPES.get("." + entry.name.rpartition(".")[2])
        if media_type and entry.is_file():
            static_files[entry.name] = StaticFile.of(entry.read_bytes(), media_type)
    index = static_files["index.html"]
    demo_page = index.content.replace(b"<html ", b"<html data-demo ", 1)
    static_files[_DEMO_INDEX] = StaticFile.of(demo_page, index.media_type)
    return static_files
