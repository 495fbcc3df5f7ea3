"""The detail of a request and the number of its images determine whether an image is split into tiles."""

from __future__ import annotations

import pytest
from llava_server.images.choose_spec import choose_spec
from llava_wire.messages.heartbeat import ImageSpec

GRID = ((28, 56), (56, 28))
NEXT = ImageSpec(side=28, fit="anyres", grid=GRID)
ONEVISION = ImageSpec(side=28, fit="anyres", grid=GRID, single_tile_fit="pad", splits_several_images=False)
PADDED, RGB = ImageSpec(side=28), ImageSpec(side=2048, fit="rgb")


@pytest.mark.parametrize(
    ("spec", "is_low_detail", "num_images", "fit"),
    [
        (NEXT, False, 1, "anyres"),
        (NEXT, False, 2, "anyres"),
        (NEXT, True, 2, "squash"),
        (ONEVISION, False, 1, "anyres"),
        (ONEVISION, False, 2, "pad"),
        (ONEVISION, True, 1, "pad"),
        (PADDED, True, 2, "pad"),
    ],
)
def test_an_image_is_split_depending_on_its_detail_and_on_the_number_of_images(
    spec: ImageSpec, is_low_detail: bool, num_images: int, fit: str
) -> None:
    chosen = choose_spec(spec, is_low_detail=is_low_detail, num_images=num_images)

    assert (chosen.fit, bool(chosen.grid)) == (fit, fit == "anyres")
    assert chosen.background == spec.background


def test_low_detail_reduces_rgb_images() -> None:
    sides = [choose_spec(RGB, is_low_detail=low, num_images=2).side for low in (False, True)]

    assert sides == [2048, 512]
