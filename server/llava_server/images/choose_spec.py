"""Selects how an image of a request is preprocessed, based on the model's ImageSpec."""

from __future__ import annotations

import msgspec
from llava_wire.messages.heartbeat import ImageSpec

__all__ = ["choose_spec"]

_LOW_DETAIL_SIDE = 512  # pixels; as documented for OpenAI's API


def choose_spec(spec: ImageSpec, *, is_low_detail: bool, num_images: int) -> ImageSpec:
    """Return the spec for one of ``num_images`` images in a prompt.

    With low detail, an image is not split into tiles, and RGB images are reduced.
    """
    if spec.fit == "rgb":
        side = min(spec.side, _LOW_DETAIL_SIDE) if is_low_detail else spec.side
        return msgspec.structs.replace(spec, side=side)
    is_split = not is_low_detail and (num_images == 1 or spec.splits_several_images)
    if is_split or not spec.grid:
        return spec
    return msgspec.structs.replace(spec, fit=spec.single_tile_fit, grid=())
