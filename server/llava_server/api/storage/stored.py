"""Store a request while it is submitted, and convert the errors of the store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from llava_wire.errors import QueueUnavailable, ResponseTooLarge
from llava_wire.stores.responses import ResponseStore, StoredResponse

from llava_server.errors import ApiError, from_store_error
from llava_server.loaded_data import LoadedBytes

__all__ = ["reserve_stored", "store_errors", "store_too_large", "stored", "suppress_not_found"]

_REMOVE_TIMEOUT_S = 5.0


@contextmanager
def store_errors() -> Iterator[None]:
    """Convert QueueUnavailable to ApiError (503)."""
    try:
        yield
    except QueueUnavailable as error:
        raise from_store_error(error) from error


@contextmanager
def suppress_not_found() -> Iterator[None]:
    """End the ``with`` block if a response or its job does not exist."""
    try:
        yield
    except ApiError as error:
        if error.code != "answer_not_found":
            raise


async def reserve_stored(store: ResponseStore, response_id: str, loaded: LoadedBytes, *, tenant: str) -> None:
    """Reserve memory for a response that is then loaded. Raises ApiError (429, 503)."""
    with store_errors():
        num_bytes = await store.num_bytes(response_id, tenant=tenant)
    await loaded.reserve(num_bytes)


def store_too_large(error: ResponseTooLarge) -> ApiError:
    """Return the error for a request that must be stored but is too large."""
    num_bytes, limit = error.num_bytes, error.max_bytes
    return ApiError(
        "invalid_value",
        f"Storing this request needs {num_bytes} bytes; the limit is {limit} bytes. Set store to false, or "
        "upload the images as files and refer to them with file_id.",
        param="store",
    )


@asynccontextmanager
async def stored(
    store: ResponseStore, response: StoredResponse, *, tenant: str, is_listed: bool = False
) -> AsyncIterator[None]:
    """Store a response before its jobs are submitted, and remove it if the ``with`` block fails.

    The client does not know the ID of the response before the block ends. If the process is killed within
    the block, the response is removed later, because it has no job. Raises ApiError (503) and
    ResponseTooLarge.
    """
    with store_errors():
        is_new = await store.add(response, tenant=tenant, is_listed=is_listed)
    try:
        yield
    except BaseException:
        if is_new:
            with anyio.move_on_after(_REMOVE_TIMEOUT_S, shield=True), contextlib.suppress(QueueUnavailable):
                await store.remove(response.response_id, tenant=tenant)
        raise
