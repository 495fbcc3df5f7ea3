"""Copy the output of ended jobs to a stored response."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from llava_wire.stores.responses import StoredResponse

from llava_server.api.storage.stored import store_errors
from llava_server.errors import ApiError
from llava_server.lifespan import Services

__all__ = ["EndedOutput", "save_output"]

_SUBMIT_S = 60.0  # maximum time between storing a response and submitting its jobs


class EndedOutput(NamedTuple):
    """The final status of a response, and the encoded response."""

    status: str
    data: bytes


async def save_output(
    services: Services,
    stored: StoredResponse,
    read_output: Callable[[], Awaitable[EndedOutput | None]],
    *,
    tenant: str,
) -> StoredResponse | None:
    """Store the output of a response whose jobs have ended, unless it is already stored.

    ``read_output`` reads the jobs. It returns None while they are unfinished, and raises ApiError with the
    code "answer_not_found" if they no longer exist. In this case, the output is lost: remove the response and
    return None. Raises ApiError (503).
    """
    if stored.output is not None:
        return stored
    try:
        ended = await read_output()
    except ApiError as error:
        if error.code != "answer_not_found":
            raise
        if time.time() - stored.head.created_at < _SUBMIT_S:
            return stored
        with store_errors():
            await services.responses.remove(stored.response_id, tenant=tenant)
        return None
    if ended is None:
        return stored
    head = msgspec.structs.replace(stored.head, status=ended.status)
    with store_errors():
        is_stored = await services.responses.finish(stored.response_id, head, ended.data, tenant=tenant)
    if not is_stored:
        return None
    return msgspec.structs.replace(stored, head=head, output=ended.data)
