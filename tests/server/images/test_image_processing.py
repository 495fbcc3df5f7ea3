"""Preprocessing is bit-identical to the original LLaVA and to transformers' processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llava_server.images.image_processing import apply_orientation, resize
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]
PILLOW_RESIZE = Image.Image.resize

SIZES = [
    (336, 336),
    (640, 480),
    (480, 640),
    (1, 1),
    (3, 3),
    (1, 7),
    (101, 10),
    (9, 301),
    (337, 336),
    (112, 40),
]
SIDES = [112, 336]
MEAN_COLOR = (122, 116, 104)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 10_007 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels)


def pil_resize(image: Image.Image, size: tuple[int, int], *_: Any, **__: Any) -> Image.Image:
    """Resize an image horizontally first, as the Pillow that the original LLaVA used."""
    return PILLOW_RESIZE(
        PILLOW_RESIZE(image, (size[0], image.height), Image.Resampling.BICUBIC),
        size,
        Image.Resampling.BICUBIC,
    )


def original_pad(image: Image.Image, side: int) -> Pixels:
    """Apply LLaVA's ``expand2square`` and CLIP's resize. CLIP's center crop has no effect on a square."""
    width, height = image.size
    square = image
    if width > height:
        square = Image.new(image.mode, (width, width), MEAN_COLOR)
        square.paste(image, (0, (width - height) // 2))
    elif height > width:
        square = Image.new(image.mode, (height, height), MEAN_COLOR)
        square.paste(image, ((height - width) // 2, 0))
    return np.asarray(pil_resize(square, (side, side)))


def processed(processor: Any, images: Image.Image | list[list[Image.Image]]) -> Pixels:
    """Return a transformers processor's output for the first image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", pil_resize)
        output: Pixels = processor(images, return_tensors="np")["pixel_values"][0]
    return np.moveaxis(output, -3, -1)


@pytest.mark.parametrize("side", SIDES)
def test_pad_equals_the_original_bit_for_bit(side: int) -> None:
    for size in [*SIZES, (2000, 700), (700, 2000)]:
        image = noise(*size)
        tile = resize(image, side=side, mode="pad", background=MEAN_COLOR)
        assert np.array_equal(np.asarray(tile), original_pad(image, side)), size


@pytest.mark.parametrize("side", SIDES)
def test_crop_equals_clips_processor_bit_for_bit(side: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_rescale=False,
        do_normalize=False,
    )
    for size in SIZES:
        image = noise(*size)
        tile = resize(image, side=side, mode="crop", background=MEAN_COLOR)
        assert np.array_equal(np.asarray(tile), processed(processor, image)), size


@pytest.mark.parametrize("side", SIDES)
def test_squash_equals_siglips_processor_bit_for_bit(side: int) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(
        size={"height": side, "width": side}, do_rescale=False, do_normalize=False
    )
    for size in SIZES:
        image = noise(*size)
        tile = resize(image, side=side, mode="squash", background=MEAN_COLOR)
        assert np.array_equal(np.asarray(tile), processed(processor, image)), size


def test_squash_equals_neither_pad_nor_crop() -> None:
    image = noise(90, 30)
    squashed, padded, cropped = (
        np.asarray(resize(image, side=28, mode=mode, background=MEAN_COLOR))
        for mode in ("squash", "pad", "crop")
    )
    assert not np.array_equal(squashed, padded)
    assert not np.array_equal(squashed, cropped)


def test_squash_equals_clips_processor_with_both_sides_given() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image, both = noise(101, 40), {"height": 28, "width": 28}
    processor = CLIPImageProcessorPil(size=both, crop_size=both, do_rescale=False, do_normalize=False)
    tile = resize(image, side=28, mode="squash", background=MEAN_COLOR)
    assert np.array_equal(np.asarray(tile), processed(processor, image))


def test_pad_equals_transformers_padding_processor_bit_for_bit() -> None:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    processor = LlavaImageProcessorPil(
        size={"shortest_edge": 112},
        crop_size={"height": 112, "width": 112},
        do_pad=True,
        do_rescale=False,
        do_normalize=False,
    )
    for size in [(640, 480), (480, 640), (337, 336)]:
        image = noise(*size)
        tile = resize(image, side=112, mode="pad", background=MEAN_COLOR)
        assert np.array_equal(np.asarray(tile), processed(processor, image)), size


def test_background_fills_the_area_around_the_image() -> None:
    tile = resize(Image.new("RGB", (300, 100), (255, 255, 255)), side=30, mode="pad", background=(1, 2, 3))
    assert tile.getpixel((15, 2)) == (1, 2, 3)
    assert tile.getpixel((15, 15)) == (255, 255, 255)
    assert tile.getpixel((15, 27)) == (1, 2, 3)


def test_every_exif_orientation_becomes_upright() -> None:
    for orientation in range(1, 9):
        image = noise(31, 17)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.info["exif"] = exif.tobytes()
        expected = ImageOps.exif_transpose(image)
        upright = apply_orientation(noise(31, 17), orientation)
        assert np.array_equal(np.asarray(upright), np.asarray(expected)), orientation


def test_unknown_orientation_leaves_the_image_unchanged() -> None:
    assert apply_orientation(noise(3, 5), 42).size == (3, 5)


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (100, 3), (64, 64)])
def test_rgb_does_not_change_an_image_within_the_limit(size: tuple[int, int]) -> None:
    image = noise(*size)
    resized = resize(image, side=100, mode="rgb", background=MEAN_COLOR)
    assert (resized.size, resized.tobytes()) == (size, image.tobytes())


@pytest.mark.parametrize(
    ("size", "expected"), [((200, 100), (100, 50)), ((101, 101), (100, 100)), ((3, 999), (1, 100))]
)
def test_rgb_reduces_a_larger_image_and_keeps_its_aspect_ratio(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    resized = resize(noise(*size), side=100, mode="rgb", background=MEAN_COLOR)
    assert resized.tobytes() == pil_resize(noise(*size), expected).tobytes()
