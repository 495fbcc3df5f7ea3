"""Conversations of stored responses: load the items that a request refers to, and store its own items.

The ID of each item contains the number of its response. Items can therefore be found without an index:

    resp_{number}   msg_{number}_i0, fco_{number}_i1 ... (input)   msg_{number}_0, fc_{number}_1 ... (output)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from llava_wire.stores.responses import BrokenChain, ResponseHead, StoredResponse
from pydantic import TypeAdapter

from llava_server.api.chat.request_handler import run_parser
from llava_server.api.json_limits import JsonLimits, JsonTooLarge, check_json
from llava_server.api.responses.input_items import (
    MAX_ITEMS,
    CallItem,
    Item,
    ItemReference,
    ReasoningItem,
    ResultItem,
)
from llava_server.api.responses.references import check_stored_bytes, with_referenced_items
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.responses.stored_output import save_response
from llava_server.api.storage.stored import store_errors
from llava_server.errors import ApiError
from llava_server.lifespan import Services
from llava_server.loaded_data import LoadedBytes

__all__ = ["StoredItem", "conversation_items", "incomplete_conversation", "new_record", "with_stored_items"]

StoredItem = dict[str, Any]
_items = TypeAdapter(list[Item])


async def with_stored_items(
    services: Services, request: ResponseRequest, loaded: LoadedBytes, *, tenant: str
) -> tuple[ResponseRequest, ResponseRequest]:
    """Replace the references in a request by the items that they refer to.

    Return the request without references, and the same request with the conversation before its input.
    Raises ApiError (400, 404, 503), which names the field.
    """
    own = await with_referenced_items(services, request.items, loaded, tenant=tenant)
    request = request.model_copy(update={"input": own})
    if request.previous_response_id is None:
        return request, request
    earlier = await _previous_items(services, request.previous_response_id, loaded, tenant=tenant)
    items = [*await services.threads.run(tenant, partial(_items.validate_python, earlier)), *own]
    if len(items) > MAX_ITEMS:
        raise _too_long(len(items))
    return request, request.model_copy(update={"input": items})


def new_record(request: ResponseRequest, job_id: str) -> StoredResponse:
    """Return the record of a new response. ``request`` must not contain references."""
    number = job_id.removeprefix("chatcmpl-")
    items = _own_items(request.items, number)
    data = msgspec.json.encode(items)
    head = ResponseHead(model=request.model, created_at=int(time.time()))
    return StoredResponse(f"resp_{number}", head, request.previous_response_id or "", data, None)


async def conversation_items(
    services: Services, response_id: str, loaded: LoadedBytes, *, tenant: str, has_output: bool
) -> list[StoredItem]:
    """Return the items of a stored conversation, oldest first, with or without the last response's output.

    Raises BrokenChain, and ApiError (400, 503).
    """
    with store_errors():
        num_bytes = await services.responses.num_bytes(response_id, tenant=tenant, max_responses=MAX_ITEMS)
        check_stored_bytes(
            services, num_bytes, "The responses of the conversation", param="previous_response_id"
        )
        await loaded.reserve(num_bytes)
        chain = await services.responses.conversation(response_id, tenant=tenant, max_responses=MAX_ITEMS)
    if chain[0].previous_id:
        raise _too_long(MAX_ITEMS + 1)
    try:
        check_json(b"".join(stored.input for stored in chain), JsonLimits())
    except JsonTooLarge as error:
        raise ApiError(
            "invalid_value", error.about("The conversation"), param="previous_response_id"
        ) from error
    parts: list[bytes] = []
    for number, stored in enumerate(chain, 1):
        parts.append(stored.input)
        if has_output or number < len(chain):
            parts.append(await _output(services, stored, tenant=tenant))
    return await run_parser(services, tenant, sum(map(len, parts)), partial(_decode, parts))


async def _previous_items(
    services: Services, response_id: str, loaded: LoadedBytes, *, tenant: str
) -> list[StoredItem]:
    try:
        return await conversation_items(services, response_id, loaded, tenant=tenant, has_output=True)
    except BrokenChain as broken:
        if broken.response_id != response_id:
            raise incomplete_conversation(broken) from broken
        raise ApiError(
            "previous_response_not_found",
            f"The previous response {response_id[:64]!a} does not exist, belongs to a different API key, was "
            "not stored, or has expired. Send the whole conversation as input.",
            param="previous_response_id",
        ) from broken


def incomplete_conversation(broken: BrokenChain) -> ApiError:
    """Return the error for a conversation in which an earlier response is missing."""
    return ApiError(
        "previous_response_not_found",
        f"The conversation contains the response {broken.response_id[:64]!a}, which has been deleted or has "
        "expired. Send the whole conversation as input.",
        param="previous_response_id",
    )


def _decode(parts: Sequence[bytes]) -> list[StoredItem]:
    """Return the items of inputs (lists of items) and outputs (whole responses)."""
    items: list[StoredItem] = []
    for part in parts:
        decoded = msgspec.json.decode(part)
        items += decoded["output"] if isinstance(decoded, dict) else decoded
    return items


async def _output(services: Services, stored: StoredResponse, *, tenant: str) -> bytes:
    """Return the response. Raises BrokenChain, and ApiError (400) if it has not completed."""
    saved = await save_response(services, stored, tenant=tenant)
    if saved is None:
        raise BrokenChain(stored.response_id)
    if saved.output is None or saved.head.status not in ("completed", "incomplete"):
        raise ApiError(
            "invalid_value",
            f"The previous response {saved.response_id} has the status {saved.head.status}. Only completed "
            "and incomplete responses can be continued.",
            param="previous_response_id",
        )
    return saved.output


def _own_items(own: Sequence[Item], number: str) -> list[StoredItem]:
    """Return the items of an input with their IDs, in the format of input items."""
    items = []
    for index, item in enumerate(own):
        if isinstance(item, ReasoningItem | ItemReference):  # reasoning is not part of the prompt
            continue
        prefix = "fc" if isinstance(item, CallItem) else "fco" if isinstance(item, ResultItem) else "msg"
        fields = item.model_dump(mode="python", exclude_none=True)
        items.append({**fields, "id": f"{prefix}_{number}_i{index}"})
    return items


def _too_long(num_items: int) -> ApiError:
    return ApiError(
        "invalid_value",
        f"The conversation has {num_items} items or more; the limit is {MAX_ITEMS}. Start a new "
        "conversation.",
        param="previous_response_id",
    )
