"""Pictures are shaped as the original LLaVA does it, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from llava_server.images.resize import Fit, fit, to_rgb, upright
from PIL import Image, ImageOps

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
MEAN_COLOUR = (122, 116, 104)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 10_007 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels)


def original_pad(image: Image.Image, side: int) -> np.ndarray:
    """LLaVA's ``expand2square``, then CLIP's resize (its centre crop does nothing to a square)."""
    width, height = image.size
    square = image
    if width > height:
        square = Image.new(image.mode, (width, width), MEAN_COLOUR)
        square.paste(image, (0, (width - height) // 2))
    elif height > width:
        square = Image.new(image.mode, (height, height), MEAN_COLOUR)
        square.paste(image, ((height - width) // 2, 0))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", [*SIZES, (2000, 700), (700, 2000)])
def test_pad_equals_the_original_bit_for_bit(size: tuple[int, int], side: int) -> None:
    image = noise(*size)
    tile = fit(image, side=side, how="pad", background=MEAN_COLOUR)
    assert np.array_equal(np.asarray(tile), original_pad(image, side))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", SIZES)
def test_crop_equals_clips_own_processor_bit_for_bit(size: tuple[int, int], side: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = noise(*size)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_rescale=False,
        do_normalize=False,
    )
    expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    tile = fit(image, side=side, how="crop", background=MEAN_COLOUR)
    assert np.array_equal(np.asarray(tile), expected)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", SIZES)
def test_squash_equals_siglips_own_processor_bit_for_bit(size: tuple[int, int], side: int) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    image = noise(*size)
    processor = SiglipImageProcessorPil(
        size={"height": side, "width": side}, do_rescale=False, do_normalize=False
    )
    expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    tile = fit(image, side=side, how="squash", background=MEAN_COLOUR)
    assert np.array_equal(np.asarray(tile), expected)


@pytest.mark.parametrize("how", ["pad", "crop"])
def test_what_is_squashed_is_neither_padded_nor_cut(how: Fit) -> None:
    image = noise(90, 30)
    squashed = fit(image, side=28, how="squash", background=MEAN_COLOUR)
    assert not np.array_equal(
        np.asarray(fit(image, side=28, how=how, background=MEAN_COLOUR)), np.asarray(squashed)
    )


def test_squash_is_what_clips_processor_does_when_told_both_sides() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image, both = noise(101, 40), {"height": 28, "width": 28}
    processor = CLIPImageProcessorPil(size=both, crop_size=both, do_rescale=False, do_normalize=False)
    expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    tile = fit(image, side=28, how="squash", background=MEAN_COLOUR)
    assert np.array_equal(np.asarray(tile), expected)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (337, 336)])
def test_pad_equals_transformers_padding_processor_bit_for_bit(size: tuple[int, int]) -> None:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    image = noise(*size)
    processor = LlavaImageProcessorPil(
        size={"shortest_edge": 112},
        crop_size={"height": 112, "width": 112},
        do_pad=True,
        do_rescale=False,
        do_normalize=False,
    )
    expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    tile = fit(image, side=112, how="pad", background=MEAN_COLOUR)
    assert np.array_equal(np.asarray(tile), expected)


def test_background_fills_what_the_picture_does_not_cover() -> None:
    tile = fit(Image.new("RGB", (300, 100), (255, 255, 255)), side=30, how="pad", background=(1, 2, 3))
    assert tile.getpixel((15, 2)) == (1, 2, 3)
    assert tile.getpixel((15, 15)) == (255, 255, 255)
    assert tile.getpixel((15, 27)) == (1, 2, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_ends_upright(orientation: int) -> None:
    image = noise(31, 17)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    expected = ImageOps.exif_transpose(image)
    assert np.array_equal(np.asarray(upright(noise(31, 17), orientation)), np.asarray(expected))


def test_unknown_orientation_leaves_the_picture_as_it_is() -> None:
    assert upright(noise(3, 5), 42).size == (3, 5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb_as_pil_converts_them(mode: str) -> None:
    image = noise(20, 10).convert(mode)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_and_not_clipped_to_white() -> None:
    image = Image.fromarray(np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16))
    assert image.mode == "I;16"
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]
