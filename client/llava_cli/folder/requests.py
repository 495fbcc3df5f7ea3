"""Sends the requests for the images of a folder, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llava_client.async_client import AsyncClient
from llava_client.chat_request import ChatOptions
from llava_client.errors import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    LlavaError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServiceUnavailableError,
)

from llava_cli.folder.image_files import ImageContent, ImageFile
from llava_cli.folder.record import Record, Request

__all__ = ["is_fatal", "send_all"]

_MAX_RETRIES = 10  # with the default delays, a server may be unavailable for almost a minute
_FATAL = (
    APIConnectionError,
    AuthenticationError,
    NotFoundError,  # the model
    PermissionDeniedError,
    RateLimitError,
)
_FATAL_CODES = frozenset({"queue_timeout"})


async def send_all(
    images: Sequence[ImageFile],
    request: Request,
    on_record: Callable[[Record], None],
    *,
    base_url: str | None,
    api_key: str | None,
    concurrency: int,
) -> None:
    """Send a request for each image and pass each result to ``on_record`` as soon as it is available.

    Errors that concern a single image are results too. Raises LlavaError for all others, and any exception
    raised by ``on_record``; the requests that are running are then cancelled.
    """
    waiting = iter(images)
    async with AsyncClient(base_url, api_key, max_retries=_MAX_RETRIES) as client:
        tasks = [
            asyncio.create_task(_send_each(waiting, client, request, on_record))
            for _ in range(min(concurrency, len(images)))
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _send_each(
    waiting: Iterator[ImageFile],
    client: AsyncClient,
    request: Request,
    on_record: Callable[[Record], None],
) -> None:
    for image in waiting:
        on_record(await _send(image, client, request))


async def _send(image: ImageFile, client: AsyncClient, request: Request) -> Record:
    """Return the result for one image, which may be an error."""
    content: ImageContent | None = None
    # "flex" requests run after all others, so a large folder does not delay interactive users.
    options: ChatOptions = {"model": request.model, "service_tier": "flex", **request.settings}  # type: ignore[typeddict-item]
    try:
        content = await asyncio.to_thread(image.read)
        response = await client.chat(request.prompt, image=content.data, **options)
    except LlavaError as exc:
        if is_fatal(exc, request.settings):
            raise
        return _record(image, content, request, error=str(exc))
    return _record(image, content, request, text=response.text, finish_reason=response.finish_reason)


def is_fatal(error: LlavaError, settings: Mapping[str, Any]) -> bool:
    """Whether the error does not depend on the image. Then, the next request would fail too.

    A 5xx status without an error code is from a proxy, because the server's own errors have codes. A 503
    that must not be retried may depend on the image, for example because the model runs out of memory.
    """
    if isinstance(error, ServiceUnavailableError):
        return error.should_retry is not False
    if isinstance(error, InternalServerError):
        return error.code is None
    if isinstance(error, BadRequestError) and error.code != "context_length_exceeded":
        return (error.param or "").partition(".")[0] in settings
    return isinstance(error, _FATAL) or (isinstance(error, APIError) and error.code in _FATAL_CODES)


def _record(
    image: ImageFile,
    content: ImageContent | None,
    request: Request,
    *,
    text: str | None = None,
    finish_reason: str | None = None,
    error: str | None = None,
) -> Record:
    return Record(
        image=image.name,
        text=text,
        finish_reason=finish_reason,
        error=error,
        model=request.model,
        prompt=request.prompt,
        settings=request.settings,
        size=len(content.data) if content else None,
        modified_ns=content.modified_ns if content else None,
        sha256=content.sha256 if content else None,
    )
