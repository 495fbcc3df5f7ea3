"""References to items of stored responses in the input of a request.

A reference is short, but its item can be as large as a request. The referenced items are therefore limited
like a request body: each response is read once, and the total sizes of the responses and of the items are
checked before the items are built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
from pydantic import TypeAdapter

from llava_server.api.chat.request_handler import run_parser
from llava_server.api.json_limits import JsonLimits, JsonTooLarge, check_json
from llava_server.api.responses.input_items import Item, ItemReference
from llava_server.api.responses.stored_output import find_response
from llava_server.api.storage.stored import store_errors
from llava_server.errors import ApiError
from llava_server.lifespan import Services
from llava_server.loaded_data import LoadedBytes

__all__ = ["check_stored_bytes", "with_referenced_items"]

_MIB = 2**20
_ITEM_ID = re.compile(r"(?:msg|fc|fco)_([0-9a-f]{32})_i?[0-9]{1,6}", re.ASCII)
_REASONING_PREFIX = "rs_"
_items = TypeAdapter(list[Item])


class _Response(msgspec.Struct):
    output: list[msgspec.Raw]


class _Identified(msgspec.Struct):
    id: str


async def with_referenced_items(
    services: Services, items: Sequence[Item], loaded: LoadedBytes, *, tenant: str
) -> list[Item]:
    """Return the items of an input, with references replaced by the items that they refer to.

    Items that are referenced repeatedly are shared. Raises ApiError (400, 404, 503), which names the field.
    """
    ids = {
        index: item.id
        for index, item in enumerate(items)
        if isinstance(item, ItemReference) and not item.id.startswith(_REASONING_PREFIX)
    }
    response_ids = {each: _response_id(each, f"input[{index}].id") for index, each in ids.items()}
    with store_errors():
        sizes = [
            await services.responses.num_bytes(each, tenant=tenant) for each in set(response_ids.values())
        ]
    check_stored_bytes(services, sum(sizes), "The responses whose items are referenced")
    await loaded.reserve(sum(sizes))
    texts: dict[str, bytes] = {}  # by item ID
    for response_id in set(response_ids.values()):
        wanted = {each for each in response_ids if response_ids[each] == response_id}
        texts.update(await _texts(services, response_id, wanted, tenant=tenant))
    for index, each in ids.items():
        if each not in texts:
            raise _not_found(each, f"input[{index}].id")
    num_bytes = sum([len(texts[each]) for each in ids.values()])
    check_stored_bytes(services, num_bytes, "The referenced items")
    found = await run_parser(services, tenant, num_bytes, partial(_built, texts, list(ids.values())))
    return [found[ids[index]] if index in ids else item for index, item in enumerate(items)]


def check_stored_bytes(services: Services, num_bytes: int, subject: str, *, param: str = "input") -> None:
    """Raise ApiError (400) if stored data that a request refers to is larger than a request body may be."""
    max_bytes = services.settings.max_body_mb * _MIB
    if num_bytes > max_bytes:
        raise ApiError(
            "invalid_value",
            f"{subject} have {num_bytes} bytes; the limit is {max_bytes} bytes, as for a "
            "request body. Use fewer of them, or upload images as files and refer to them with file_id.",
            param=param,
        )


def _response_id(item_id: str, param: str) -> str:
    match = _ITEM_ID.fullmatch(item_id)
    if match is None:
        raise _not_found(item_id, param)
    return f"resp_{match[1]}"


async def _texts(
    services: Services, response_id: str, item_ids: set[str], *, tenant: str
) -> Mapping[str, bytes]:
    """Return the JSON texts of those of the items that the response has. Raises ApiError (503)."""
    stored = await find_response(services, response_id, tenant=tenant)
    if stored is None:
        return {}
    find = partial(_select, stored.input, stored.output, item_ids)
    return await run_parser(services, tenant, len(stored.input) + len(stored.output or b""), find)


def _select(own: bytes, output: bytes | None, item_ids: set[str]) -> dict[str, bytes]:
    raw = msgspec.json.decode(own, type=list[msgspec.Raw])
    if output:
        raw += msgspec.json.decode(output, type=_Response).output
    by_id = {msgspec.json.decode(each, type=_Identified).id: bytes(each) for each in raw}
    return {each: text for each, text in by_id.items() if each in item_ids}


def _built(texts: Mapping[str, bytes], ids: Sequence[str]) -> dict[str, Item]:
    """Return the items by their IDs. ``ids`` contains repeated references. Raises ApiError (400)."""
    try:
        check_json(b"[" + b",".join(texts[each] for each in ids) + b"]", JsonLimits())
    except JsonTooLarge as error:
        raise ApiError("invalid_value", error.about("The list of referenced items"), param="input") from error
    built = _items.validate_python([msgspec.json.decode(text) for text in texts.values()])
    return dict(zip(texts, built, strict=True))


def _not_found(item_id: str, param: str) -> ApiError:
    short_id = item_id[:64]
    return ApiError(
        "item_not_found",
        f"{param}: the item {short_id!a} does not exist, belongs to a different API key, was not stored, "
        "or has expired. Send the item itself.",
        param=param,
    )
