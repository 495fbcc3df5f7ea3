"""From a picture's size to tiles and tokens: transformers' numbers for 1.6, the paper's rules for HD."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.config.image_grid import HD_SHAPES, ImageLayout, best_resolution, fitted_size
from llava_worker.model.llava import Llava
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]  # height, width
ANYRES = ImageLayout(336, 576, fit="anyres", grid=tuple((width, height) for height, width in PINPOINTS))
HD = ImageLayout(224, 256, fit="hd", grid=tuple((across * 224, down * 224) for across, down in HD_SHAPES))
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


def transformers_tokens(width: int, height: int) -> int:
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=PINPOINTS),
        patch_size=14,
        num_additional_image_tokens=0,
        _get_unpadded_features=lambda *args: LlavaNextProcessor._get_unpadded_features(None, *args),
    )
    return LlavaNextProcessor._get_number_of_features(processor, height, width, 336, 336)


@settings(max_examples=300, deadline=None)
@given(size=SIZES)
def test_tiles_and_tokens_of_1_6_are_those_of_transformers(size: tuple[int, int]) -> None:
    width, height = size
    plan = ANYRES.plan(width, height)
    down, across = select_best_resolution((height, width), PINPOINTS)

    assert best_resolution(size, ANYRES.grid) == (across, down)
    assert plan.num_tiles == 1 + (across // 336) * (down // 336)
    assert plan.num_tokens == ANYRES.num_tokens(width, height) == transformers_tokens(width, height)


@settings(max_examples=100, deadline=None)
@given(size=SIZES)
def test_a_picture_is_resized_for_its_canvas_as_in_transformers(size: tuple[int, int]) -> None:
    width, height = size
    canvas = best_resolution(size, ANYRES.grid)
    blank = np.zeros((1, height, 1), dtype=np.uint8)
    image = np.broadcast_to(blank, (1, height, width))

    fitted = get_patch_output_size(image, canvas[::-1], input_data_format="channels_first")

    assert fitted_size(size, canvas) == fitted[::-1]


def test_the_paper_s_grids_have_up_to_six_tiles_and_waste_none() -> None:
    assert max(across * down for across, down in HD_SHAPES) == 6
    assert len(set(HD_SHAPES)) == len(HD_SHAPES) == 14
    assert all(shape[::-1] in HD_SHAPES for shape in HD_SHAPES)
    assert best_resolution((224, 224), HD.grid) == (224, 224)
    assert best_resolution((1344, 896), HD.grid) == (672, 448)


@settings(max_examples=200, deadline=None)
@given(size=SIZES)
def test_hd_drops_exactly_the_patches_that_show_only_padding(size: tuple[int, int]) -> None:
    plan = HD.plan(*size)
    canvas = best_resolution(size, HD.grid)
    inner = fitted_size(size, canvas)
    for total, shown, first, last in (
        (canvas[0], inner[0], plan.left, plan.right),
        (canvas[1], inner[1], plan.top, plan.bottom),
    ):
        start = (total - shown) // 2
        seen = [n for n in range(total // 14) if n * 14 < start + shown and (n + 1) * 14 > start]
        assert seen == list(range(first, last))


@pytest.mark.parametrize("layout", [ANYRES, HD], ids=["anyres", "hd"])
@pytest.mark.parametrize("size", [(500, 300), (300, 500), (100, 100), (1500, 120), (33, 900)])
def test_assembled_features_equal_a_plain_slow_reference(layout: ImageLayout, size) -> None:
    plan = layout.plan(*size)
    features = torch.randn(plan.num_tiles, layout.tokens_per_tile, 3)
    newline = torch.randn(3)

    ours = Llava.assemble(SimpleNamespace(image_newline=newline), features, plan)

    side = layout.patches_per_side
    slow = list(features[0])
    for y in range(plan.top, plan.bottom):
        for x in range(plan.left, plan.right):
            tile = 1 + (y // side) * plan.columns + x // side
            slow.append(features[tile, (y % side) * side + x % side])
        slow.append(newline)
    assert torch.equal(ours, torch.stack(slow))
    assert len(ours) == plan.num_tokens


def test_a_picture_without_a_grid_is_one_tile_of_any_size() -> None:
    plan = ImageLayout(336, 577).plan(0, 0)

    assert (plan.num_tiles, plan.num_tokens, plan.rows) == (1, 577, 0)


def test_layouts_and_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[\(300, 336\)\] is not made of tiles of 336"):
        ImageLayout(336, 576, fit="anyres", grid=((300, 336),))
    with pytest.raises(ValueError, match="is not made of tiles"):
        ImageLayout(336, 576, fit="anyres")
    with pytest.raises(ValueError, match="577 tokens is no square"):
        ImageLayout(336, 577, fit="anyres", grid=((336, 336),))
    with pytest.raises(ValueError, match="0x5 pixels"):
        ANYRES.plan(0, 5)


def test_the_count_of_tokens_needs_no_torch() -> None:
    code = "import sys, llava_worker.model.config.image_grid; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert math.isqrt(576) == ANYRES.patches_per_side
