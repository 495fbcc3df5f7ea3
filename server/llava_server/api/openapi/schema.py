"""What the shapes of answers are made of: nothing is in an answer but what its shape names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FLOAT32", "Count", "Index", "Moment", "Shape", "Tokens", "absent"]

_INT32 = 2**31 - 1
_LAST_SECOND = 253_402_300_799  # of the year 9999
FLOAT32 = 3.4028234663852886e38  # the largest

Count = Annotated[int, Field(ge=0, le=_INT32)]
Tokens = Count
Index = Count
Moment = Annotated[int, Field(ge=0, le=_LAST_SECOND)]  # Unix seconds


class Shape(BaseModel):
    """An answer or a part of one."""

    model_config = ConfigDict(extra="forbid", strict=True)


def absent() -> Any:
    """As ``default_factory``: the field is left out where there is nothing to tell, and is never null."""
    return None
