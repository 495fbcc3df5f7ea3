"""Pages of a list: the parameters ``after``, ``limit`` and ``order`` of OpenAI's APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

from fastapi import Query

from llava_server.errors import ApiError

__all__ = ["After", "Limit", "Order", "page_of"]

_MAX_PAGE = 100
T = TypeVar("T")

After = Annotated[
    str, Query(description="ID of the last item on the previous page.", max_length=128, examples=[""])
]
Limit = Annotated[
    int, Query(ge=1, le=_MAX_PAGE, description="Maximum number of items per page.", examples=[20])
]
Order = Literal["asc", "desc"]


def page_of(
    items: Sequence[T], id_of: Callable[[T], str], *, after: str, limit: int, order: Order
) -> tuple[list[T], bool]:
    """Return one page of a list that is sorted in ascending order, and whether there are more items.

    Raises ApiError (400) if no item has the ID ``after``.
    """
    ordered = list(items) if order == "asc" else list(items)[::-1]
    start = 0
    if after:
        ids = [id_of(item) for item in ordered]
        if after not in ids:
            raise ApiError(
                "invalid_value",
                f"after is {after[:64]!a}, but the list has no item with this ID. Use the last_id of the "
                "previous page.",
                param="after",
            )
        start = ids.index(after) + 1
    return ordered[start : start + limit], len(ordered) > start + limit
