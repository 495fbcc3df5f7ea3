"""Write hashes of preprocessed images, computed with the Pillow that is installed, to tests/data/pixels.

    python -m venv old && old/bin/pip install pillow==10.2.0 numpy && old/bin/python tools/pixel_goldens.py

Pillow 10.2.0 was current when LLaVA-1.6 was published. Pillow 13 resizes some images in a different order, so
the script refuses to run with it. The script applies the rules of the original LLaVA (``expand2square`` and
``process_anyres_image`` in ``mm_utils.py``) and of CLIP's image processor to whole images, and shares no code
with the server.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

FILE = Path(__file__).parents[1] / "tests" / "data" / "pixels" / "goldens.json"
LAST_VERSION = 12  # the last major version of Pillow that always resizes horizontally first

MEAN_COLOR = (122, 116, 104)
SIZES = [(1, 1), (7, 5), (336, 336), (640, 480), (480, 640), (700, 2000), (2000, 700), (61, 1300), (1300, 61)]
EXTREME_SIZES = [
    (700, 1),
    (1, 700),
    (5000, 3),
    (3, 5000),
    (1, 101),
    (1009, 10),
    (10, 1009),
    (101, 1),
    (9, 4501),
]
SIDES = [28, 140, 336]
MAX_RESIZED_PIXELS = 10**8  # PIL needs four bytes for each


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 10_007 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def padded(image: Image.Image, side: int) -> Image.Image:
    long = max(image.size)
    square = Image.new("RGB", (long, long), MEAN_COLOR)
    square.paste(image, ((long - image.width) // 2, (long - image.height) // 2))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, side: int) -> Image.Image | None:
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        return None
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return resized.crop((left, top, left + side, top + side))


def squashed(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BICUBIC)


def split(image: Image.Image, side: int) -> Image.Image:
    """Return the tiles, stacked vertically, for the canvas sizes of LLaVA-1.6."""
    canvases = [(side * columns, side * rows) for columns, rows in [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]]
    across, down = best_canvas(image.size, canvases)
    x_scale, y_scale = across / image.width, down / image.height
    if x_scale < y_scale:
        inner = (across, min(math.ceil(image.height * x_scale), down))
    else:
        inner = (min(math.ceil(image.width * y_scale), across), down)
    canvas = Image.new("RGB", (across, down))
    resized = image.resize(inner, Image.Resampling.BICUBIC)
    canvas.paste(resized, ((across - inner[0]) // 2, (down - inner[1]) // 2))
    boxes = [(x, y, x + side, y + side) for y in range(0, down, side) for x in range(0, across, side)]
    tiles = [squashed(image, side), *(canvas.crop(box) for box in boxes)]
    return Image.fromarray(np.concatenate([np.asarray(tile) for tile in tiles]))


def best_canvas(size: tuple[int, int], canvases: list[tuple[int, int]]) -> tuple[int, int]:
    best, most, least_wasted = canvases[0], 0, math.inf
    for across, down in canvases:
        scale = min(across / size[0], down / size[1])
        used = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        wasted = across * down - used
        if used > most or (used == most and wasted < least_wasted):
            best, most, least_wasted = (across, down), used, wasted
    return best


MODES = {"pad": padded, "crop": cropped, "squash": squashed, "anyres": split}


def main() -> None:
    if int(PIL.__version__.partition(".")[0]) > LAST_VERSION:
        raise SystemExit(f"Pillow is {PIL.__version__}; install version {LAST_VERSION} or earlier.")
    goldens = []
    for width, height in SIZES + EXTREME_SIZES:
        image = noise(width, height)
        for mode, process in MODES.items():
            for side in SIDES:
                tiles = process(image, side)
                if tiles is not None:
                    digest = hashlib.sha256(tiles.tobytes()).hexdigest()
                    goldens.append({"size": [width, height], "mode": mode, "side": side, "sha256": digest})
    lines = ",\n".join(json.dumps(golden) for golden in goldens)
    FILE.write_text(f'{{"pillow": "{PIL.__version__}", "images": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
