"""The input items of a stored response, and the number of tokens of an input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from llava_wire.stores.responses import BrokenChain
from starlette.requests import Request
from starlette.responses import Response

from llava_server.api.chat.request_handler import RequestHandler
from llava_server.api.openapi.document import Operation
from llava_server.api.responses.conversation import StoredItem, conversation_items, incomplete_conversation
from llava_server.api.responses.item_list import InputTokenCount, StoredItemList, to_stored_item
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.responses.routes import ResponseId, read_request
from llava_server.api.storage.paging import After, Limit, Order, page_of
from llava_server.api.tokenize.routes import count_chat_tokens
from llava_server.errors import response_not_found
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.response_model import JSONResponse

__all__ = ["router"]

router = APIRouter(tags=["responses"])

_IMAGE_URL = "message.input_image.image_url"
_INCLUDE = (
    f"Additional data to include. {_IMAGE_URL} includes the URLs of images. Other values have no effect."
)


@router.get("/v1/responses/{response_id}/input_items", summary="List the input items of a response")
@Operation("The items", StoredItemList, statuses=(400, 401, 404, 500, 503))
async def list_input_items(
    request: Request,
    response_id: ResponseId,
    after: After = "",
    limit: Limit = 20,
    order: Annotated[
        Order, Query(description='"asc" lists the oldest item first.', examples=["desc"])
    ] = "desc",
    include: Annotated[
        list[str] | None, Query(description=_INCLUDE, max_length=16, examples=[[_IMAGE_URL]])
    ] = None,
    include_brackets: Annotated[
        list[str] | None,
        Query(
            alias="include[]",
            description="Other name for include.",
            max_length=16,
            examples=[[_IMAGE_URL]],
        ),
    ] = None,
) -> Response:
    """Returns all items from which the response was generated, including those of earlier responses that it
    continues.
    """
    handler = RequestHandler(request)
    try:
        items = await conversation_items(
            handler.services, response_id, handler.loaded, tenant=handler.tenant, has_output=False
        )
    except BrokenChain as error:
        if error.response_id != response_id:
            raise incomplete_conversation(error) from error
        raise response_not_found() from error
    include_all = (*(include or ()), *(include_brackets or ()))
    build = partial(
        _item_list, items, after=after, limit=limit, order=order, has_image_urls=_IMAGE_URL in include_all
    )
    return await handler.encoded(handler.loaded.num_bytes, build)


def _item_list(
    items: Sequence[StoredItem], *, after: str, limit: int, order: Order, has_image_urls: bool
) -> StoredItemList:
    page, has_more = page_of(items, lambda item: str(item["id"]), after=after, limit=limit, order=order)
    data = [to_stored_item(item, has_image_urls=has_image_urls) for item in page]
    body = StoredItemList(data=data, has_more=has_more)
    if data:
        body.first_id, body.last_id = data[0].id, data[-1].id
    return body


@router.post("/v1/responses/input_tokens", summary="Count the tokens of an input")
@Operation("The token count", InputTokenCount, request=ResponseRequest)
async def count_input_tokens(request: Request) -> Response:
    """The count includes image tokens, tools and the conversation of ``previous_response_id``."""
    return await cancel_on_disconnect(request.receive, _count(RequestHandler(request)))


async def _count(handler: RequestHandler) -> Response:
    with handler.body() as raw:
        _, chat = await read_request(handler, raw, handler.loaded)
        return JSONResponse(InputTokenCount(await count_chat_tokens(handler, chat)))
