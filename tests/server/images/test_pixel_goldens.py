"""Tiles equal those computed with the version of Pillow that the original LLaVA used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL
import pytest
from llava_server.images.image_processing import ResizeMode, resize
from PIL import Image

from tests.server.images.test_image_processing import MEAN_COLOR, noise

FILE = Path(__file__).parents[2] / "data" / "pixels" / "goldens.json"  # written by tools/pixel_goldens.py
GOLDENS: list[dict[str, Any]] = json.loads(FILE.read_text())["images"]
SHAPES = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]


def sha256_of(image: Image.Image, mode: ResizeMode, side: int) -> str:
    grid = [(side * columns, side * rows) for columns, rows in SHAPES]
    tiles = resize(image, side=side, mode=mode, background=MEAN_COLOR, grid=grid)
    return hashlib.sha256(tiles.tobytes()).hexdigest()


def test_tiles_equal_those_of_the_pillow_that_the_original_used_bit_for_bit() -> None:
    assert len(GOLDENS) > 150
    different = [
        golden
        for golden in GOLDENS
        if sha256_of(noise(*golden["size"]), cast(ResizeMode, golden["mode"]), golden["side"])
        != golden["sha256"]
    ]
    assert not different


@pytest.mark.skipif(PIL.__version__ < "13", reason="requires Pillow 13")
def test_pillow_13_resizes_tall_images_in_a_different_order() -> None:
    image = noise(480, 640)
    squashed = np.asarray(image.resize((336, 336), Image.Resampling.BICUBIC))
    golden = next(g for g in GOLDENS if (g["size"], g["mode"], g["side"]) == ([480, 640], "squash", 336))
    assert hashlib.sha256(squashed.tobytes()).hexdigest() != golden["sha256"]
