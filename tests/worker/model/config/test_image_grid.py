"""Images have the same tiles and tokens as in transformers, in the original code or in the HD paper."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llava_worker.model.config.image_grid import (
    HD_SHAPES,
    ImageLayout,
    Merge,
    best_resolution,
    size_on_canvas,
)
from llava_worker.model.llava import Llava
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from tests.worker.original_merge import merge_features

PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]  # height, width
ANYRES = ImageLayout(336, 576, fit="anyres", grid=tuple((width, height) for height, width in PINPOINTS))
HD = ImageLayout(224, 256, fit="hd", grid=tuple((columns * 224, rows * 224) for columns, rows in HD_SHAPES))
ONEVISION_SIDES = range(384, 2305, 384)
ONEVISION_PINPOINTS = [[height, width] for height in ONEVISION_SIDES for width in ONEVISION_SIDES]
ONEVISION = ImageLayout(
    384, 729, fit="anyres", grid=tuple((width, height) for height, width in ONEVISION_PINPOINTS), max_tiles=9
)
LENGTHS = st.one_of(st.integers(1, 3000), st.sampled_from([1, 2, 3, 16_384]))
SIZES = st.tuples(LENGTHS, LENGTHS)


def transformers_tokens(width: int, height: int) -> int:
    processor: Any = LlavaNextProcessor
    attributes = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=PINPOINTS),
        patch_size=14,
        num_additional_image_tokens=0,
        _get_unpadded_features=lambda *args: processor._get_unpadded_features(None, *args),
    )
    return int(processor._get_number_of_features(attributes, height, width, 336, 336))


@settings(max_examples=300, deadline=None)
@given(size=SIZES)
def test_tiles_and_tokens_of_llava_1_6_equal_those_of_transformers(size: tuple[int, int]) -> None:
    width, height = size
    plan = ANYRES.plan(width, height)
    canvas_height, canvas_width = select_best_resolution((height, width), PINPOINTS)

    assert best_resolution(size, ANYRES.grid) == (canvas_width, canvas_height)
    assert plan.num_tiles == 1 + (canvas_width // 336) * (canvas_height // 336)
    assert plan.num_tokens == ANYRES.num_tokens(width, height) == transformers_tokens(width, height)


def onevision_tokens(width: int, height: int) -> int:
    processor: Any = LlavaOnevisionProcessor
    attributes = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=ONEVISION_PINPOINTS),
        num_image_tokens=729,
        vision_aspect_ratio="anyres_max_9",
    )
    attributes._get_unpadded_features = lambda *args: processor._get_unpadded_features(attributes, *args)
    return int(processor._get_number_of_features(attributes, height, width, 384, 384))


@settings(max_examples=300, deadline=None)
@given(size=SIZES)
def test_tiles_and_tokens_of_onevision_equal_those_of_transformers(size: tuple[int, int]) -> None:
    width, height = size
    plan = ONEVISION.plan(width, height)
    canvas_height, canvas_width = select_best_resolution((height, width), ONEVISION_PINPOINTS)

    assert plan.num_tiles == 1 + (canvas_width // 384) * (canvas_height // 384)
    assert plan.num_tokens == onevision_tokens(width, height) <= ONEVISION.max_tokens


# In the original layout, the same list contains the width first. If several sizes are equally good, the first
# one in the list is selected, so some images have a different grid.
ORIGINAL_ANYRES = replace(ANYRES, grid=tuple(PINPOINTS), rounds_sizes=False)
ORIGINAL = [replace(ORIGINAL_ANYRES, merge=merge) for merge in get_args(Merge)]
ORIGINAL.append(replace(ONEVISION, rounds_sizes=False))


@pytest.mark.parametrize("layout", ORIGINAL, ids=["flat", "spatial", "spatial_unpad", "onevision"])
@settings(max_examples=40, deadline=None)
@given(size=SIZES)
@example((1598, 752))
@example((88, 55))
@example((328, 205))
def test_tokens_and_features_equal_those_of_the_original_code(
    layout: ImageLayout, size: tuple[int, int]
) -> None:
    plan = layout.plan(*size)
    features = torch.rand(plan.num_tiles, layout.tokens_per_tile, 1)
    newline = torch.full((1,), -1.0)
    expected = merge_features(features, size, layout, newline)

    model = cast(Llava, SimpleNamespace(image_newline=newline))
    assert torch.equal(Llava.assemble(model, features, plan), expected)
    assert plan.num_tokens == len(expected) <= layout.max_tokens


def test_sizes_that_transformers_rounds_have_the_tokens_of_the_original_code() -> None:
    """A floating-point value slightly below a whole number of patches is rounded down."""
    for size, num_tokens, num_rounded in (
        ((1598, 752), 1800, 1848),
        ((88, 55), 926, 976),
        ((328, 205), 926, 976),
        ((640, 480), 2340, 2340),
    ):
        assert ORIGINAL_ANYRES.num_tokens(*size) == num_tokens
        assert replace(ORIGINAL_ANYRES, rounds_sizes=True).num_tokens(*size) == num_rounded


def test_only_large_grids_of_onevision_are_reduced() -> None:
    reduced = [ONEVISION.plan(side, side).reduced for side in (300, 1152, 1250, 4000)]

    assert reduced == [None, None, (81, 81), (81, 81)]


@pytest.mark.parametrize("size", [(300, 200), (1500, 1490), (2400, 900), (700, 4000), (4000, 4000)])
def test_features_of_onevision_equal_those_of_transformers(size: tuple[int, int]) -> None:
    small = ImageLayout(
        28,
        16,
        fit="anyres",
        grid=tuple((w * 28 // 384, h * 28 // 384) for w, h in ONEVISION.grid),
        max_tiles=9,
    )
    plan = small.plan(*size)
    features, newline = torch.randn(plan.num_tiles, 16, 3), torch.randn(3)
    vision = SimpleNamespace(image_size=28, patch_size=7)
    pinpoints = [[height, width] for width, height in small.grid]
    attributes: Any = SimpleNamespace(
        config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    )
    (expected,), _ = LlavaOnevisionModel.pack_image_features(attributes, [features], [size[::-1]], newline)
    (alone,), _ = LlavaOnevisionModel.pack_image_features(attributes, [features[:1]], [size[::-1]], newline)

    model = cast(Llava, SimpleNamespace(image_newline=newline))
    assert torch.equal(Llava.assemble(model, features, plan), expected)
    assert torch.equal(Llava.assemble(model, features[:1], small.plan(0, 0)), alone)
    assert len(expected) == plan.num_tokens


@settings(max_examples=100, deadline=None)
@given(size=SIZES)
def test_an_image_is_resized_for_its_canvas_as_in_transformers(size: tuple[int, int]) -> None:
    width, height = size
    canvas = best_resolution(size, ANYRES.grid)
    image = np.broadcast_to(np.zeros((1, height, 1), dtype=np.uint8), (1, height, width))
    output_size: Any = get_patch_output_size

    expected = output_size(image, canvas[::-1], input_data_format="channels_first")

    assert size_on_canvas(size, canvas) == expected[::-1]


def test_hd_grids_have_up_to_six_tiles_and_the_smallest_lossless_one_is_selected() -> None:
    assert max(columns * rows for columns, rows in HD_SHAPES) == 6
    assert len(set(HD_SHAPES)) == len(HD_SHAPES) == 14
    assert all(shape[::-1] in HD_SHAPES for shape in HD_SHAPES)
    assert best_resolution((224, 224), HD.grid) == (224, 224)
    assert best_resolution((1344, 896), HD.grid) == (672, 448)


@settings(max_examples=200, deadline=None)
@given(size=SIZES)
def test_hd_drops_exactly_the_patches_that_contain_only_padding(size: tuple[int, int]) -> None:
    plan = HD.plan(*size)
    canvas = best_resolution(size, HD.grid)
    inner = size_on_canvas(size, canvas)
    for total, shown, first, last in (
        (canvas[0], inner[0], plan.left, plan.right),
        (canvas[1], inner[1], plan.top, plan.bottom),
    ):
        start = (total - shown) // 2
        seen = [n for n in range(total // 14) if n * 14 < start + shown and (n + 1) * 14 > start]
        assert seen == list(range(first, last))


def test_assembled_features_equal_a_simple_reference() -> None:
    for layout in (ANYRES, HD):
        for size in ((500, 300), (300, 500), (100, 100), (1500, 120), (33, 900), (16_384, 1), (1, 16_384)):
            plan = layout.plan(*size)
            features = torch.randn(plan.num_tiles, layout.tokens_per_tile, 3)
            newline = torch.randn(3)
            model = cast(Llava, SimpleNamespace(image_newline=newline))

            actual = Llava.assemble(model, features, plan)

            side = layout.patches_per_side
            expected = list(features[0])
            for y in range(plan.top, plan.bottom):
                for x in range(plan.left, plan.right):
                    tile = 1 + (y // side) * plan.columns + x // side
                    expected.append(features[tile, (y % side) * side + x % side])
                expected.append(newline)
            assert torch.equal(actual, torch.stack(expected))
            assert len(actual) == plan.num_tokens


def test_an_image_thinner_than_a_patch_has_the_tokens_of_the_base_view_and_newlines_only() -> None:
    """The original removes all rows or columns of the grid from such an image."""
    assert ANYRES.num_tokens(16_384, 1) == transformers_tokens(16_384, 1) == 576
    assert ANYRES.num_tokens(1, 16_384) == transformers_tokens(1, 16_384) == 576 + 24


def test_without_a_grid_an_image_of_any_size_is_one_tile() -> None:
    plan = ImageLayout(336, 577).plan(0, 0)

    assert (plan.num_tiles, plan.num_tokens, plan.rows) == (1, 577, 0)


def test_invalid_layouts_and_sizes_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"\[\(300, 336\)\] is not supported; .* the tile size, 336"):
        ImageLayout(336, 576, fit="anyres", grid=((300, 336),))
    with pytest.raises(ValueError, match=r"Image grid \[\] is not supported"):
        ImageLayout(336, 576, fit="anyres")
    with pytest.raises(ValueError, match="577 tokens; image grids require a square number"):
        ImageLayout(336, 577, fit="anyres", grid=((336, 336),))
    with pytest.raises(ValueError, match="0x5 pixels"):
        ANYRES.plan(0, 5)


def test_counting_tokens_does_not_import_torch() -> None:
    code = "import sys, llava_worker.model.config.image_grid; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert ANYRES.patches_per_side**2 == 576
