"""Types of the numbers in a checkpoint's configuration, with their limits.

The limits are far above the values of published models, but low enough that a model within them can be
described, without its weights, in a fraction of a second and some MB. The memory that it needs is checked
afterwards (see `memory_estimate`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

__all__ = [
    "MAX_FEATURE_LAYERS",
    "MAX_TOKENS",
    "Factor",
    "HeadCount",
    "ImageSide",
    "LayerCount",
    "LayerIndex",
    "Length",
    "Proportion",
    "Rank",
    "TokenId",
    "VocabSize",
    "Width",
]

MAX_FEATURE_LAYERS = 64
MAX_TOKENS = 1024  # in a list of end tokens


def _require_number(value: Any) -> Any:
    """Reject strings and booleans, which pydantic would convert."""
    if isinstance(value, (str, bool)):
        raise ValueError("Input should be a number")
    return value


_Number = BeforeValidator(_require_number)
_Int = Annotated[int, _Number]
_Float = Annotated[float, _Number, Field(allow_inf_nan=False)]

Width = Annotated[_Int, Field(ge=1, le=1 << 18)]  # of a layer
HeadCount = Annotated[_Int, Field(ge=1, le=1 << 12)]
LayerCount = Annotated[_Int, Field(ge=1, le=1 << 10)]
LayerIndex = Annotated[_Int, Field(ge=-1 << 10, le=1 << 10)]
VocabSize = Annotated[_Int, Field(ge=1, le=1 << 24)]
TokenId = Annotated[_Int, Field(ge=-1 << 31, lt=1 << 31)]  # -1 is a placeholder in some files
Length = Annotated[_Int, Field(ge=1, le=1 << 30)]  # in tokens
ImageSide = Annotated[_Int, Field(ge=1, le=1 << 12)]  # in pixels
Rank = Annotated[_Int, Field(ge=1, le=1 << 16)]
Proportion = Annotated[_Float, Field(ge=0, le=1)]
Factor = Annotated[_Float, Field(gt=0, le=1e15)]
