"""Render scenes to images, preprocess images for the model, and label the patches of the vision tower."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tiny.scenes import COLOURS, REGIONS, SHAPES, Object, Scene, font

__all__ = ["GRID", "IMAGE_SIZE", "LABELS", "PATCH", "draw", "patch_labels", "preprocess"]

IMAGE_SIZE = 140  # width and height of the tower's input in pixels
PATCH = 14
GRID = IMAGE_SIZE // PATCH
_PAD = (122, 116, 104)  # int(255 * CLIP mean), the padding color of LLaVA-1.5
_FINE = 4  # number of label samples per patch in each direction
_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# The labels of a patch, each with its number of classes. Class 0 means that the label does not apply.
LABELS: dict[str, int] = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS) + 1,
    "centre": 2,
    "region": 10,
    "rank": 6,
    "character": len(_CHARACTERS) + 1,
    "place_in_text": 6,
}


def draw(scene: Scene) -> Image.Image:
    """Render a scene to an RGB image of the scene's size."""
    image = _background(scene)
    pen = ImageDraw.Draw(image)
    for thing in scene.objects:
        _draw_object(pen, thing, 0.0, 0.0, 1.0, thing.rgb)
    if scene.text is not None:
        face = font(scene.text.font_size)
        left, top, _, _ = face.getbbox(scene.text.characters)
        stroke = scene.text.font_size / 26  # still readable after resizing to 140 pixels
        at = (scene.text.x - left, scene.text.y - top)
        pen.text(at, scene.text.characters, font=face, fill=scene.text.rgb, stroke_width=stroke)
    return image


def preprocess(image: Image.Image) -> Image.Image:
    """Pad an image to a square with the mean color and resize it (bicubic), as LLaVA-1.5 does."""
    side = max(image.size)
    if image.size != (side, side):
        canvas = Image.new("RGB", (side, side), _PAD)
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def patch_labels(scene: Scene) -> NDArray[np.int64]:  # [len(LABELS), GRID * GRID]
    """Return the labels for each patch of the padded image, in the order of LABELS."""
    owner = _majority(_owner_map(scene))
    shapes, colours, regions = list(SHAPES), list(COLOURS), [name for row in REGIONS for name in row]
    table = np.zeros((len(LABELS), 16), np.int64)  # labels for each owner: first objects, then characters
    for number, thing in enumerate(scene.objects, start=1):
        column, row = int(3 * thing.x / scene.width), int(3 * thing.y / scene.height)
        region = 1 + regions.index(REGIONS[row][column])
        table[:5, number] = 1 + shapes.index(thing.shape), 1 + colours.index(thing.colour), 0, region, number
    if scene.text is not None:
        for place, character in enumerate(scene.text.characters):
            table[5:, 6 + place] = 1 + _CHARACTERS.index(character), 1 + place
    labels = table[:, owner]
    side = max(scene.width, scene.height)
    for thing in scene.objects:
        column = int(GRID * (thing.x + (side - scene.width) // 2) / side)
        row = int(GRID * (thing.y + (side - scene.height) // 2) / side)
        labels[2, row * GRID + column] = 1
    return labels


def _owner_map(scene: Scene) -> NDArray[np.uint8]:
    """Return the owner of each label sample: 0 for none, 1 to 5 for an object, 6 or more for a character."""
    side, cells = max(scene.width, scene.height), GRID * _FINE
    scale = cells / side
    left, top = (side - scene.width) // 2, (side - scene.height) // 2
    image = Image.new("L", (cells, cells))
    pen = ImageDraw.Draw(image)
    for number, thing in enumerate(scene.objects, start=1):
        _draw_object(pen, thing, left, top, scale, number)
    if scene.text is not None:
        text, face = scene.text, font(scene.text.font_size)
        for place in range(len(text.characters)):
            start = face.getlength(text.characters[:place])
            end = face.getlength(text.characters[: place + 1])
            box = [(text.x + start + left) * scale, (text.y + top) * scale]
            box += [(text.x + end + left) * scale - 1, (text.y + text.height + top) * scale - 1]
            if box[2] >= box[0] and box[3] >= box[1]:
                pen.rectangle(box, fill=6 + place)
    return np.asarray(image)


def _majority(cells: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the most frequent owner in each patch, or 0 if it covers less than an eighth of the patch."""
    patches = cells.reshape(GRID, _FINE, GRID, _FINE).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    counts = (patches[:, :, None] == np.arange(1, 16)).sum(1)
    return np.where(counts.max(1) >= 2, counts.argmax(1) + 1, 0)


def _background(scene: Scene) -> Image.Image:
    first, second = scene.backgrounds
    image = Image.new("RGB", (scene.width, scene.height), first)
    if first != second:
        ramp = Image.linear_gradient("L")
        ramp = ramp if scene.is_gradient_vertical else ramp.rotate(90)
        image.paste(second, mask=ramp.resize(image.size))
    if scene.noise:
        rng = np.random.default_rng(scene.noise_seed)
        grain = rng.integers(0, 2 * scene.noise + 1, (scene.height, scene.width, 3), dtype=np.uint8)
        pixels = np.asarray(image).astype(np.int16) + grain - scene.noise
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image


def _draw_object(
    pen: ImageDraw.ImageDraw,
    thing: Object,
    left: float,
    top: float,
    scale: float,
    fill: int | tuple[int, int, int],
) -> None:
    x, y, radius = (thing.x + left) * scale, (thing.y + top) * scale, thing.radius * scale
    if thing.shape == "circle":
        reach = 0.9 * radius
        pen.ellipse([x - reach, y - reach, x + reach, y + reach], fill=fill)
        return
    turn = math.radians(thing.angle)
    cosine, sine = math.cos(turn), math.sin(turn)
    points = [
        (x + radius * (a * cosine - b * sine), y + radius * (a * sine + b * cosine))
        for a, b in _OUTLINES[thing.shape]
    ]
    pen.polygon(points, fill=fill)


def _ray(degrees: float, length: float = 1.0) -> tuple[float, float]:
    return length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))


def _heart() -> list[tuple[float, float]]:
    points = []
    for step in range(40):
        t = 2 * math.pi * step / 40
        across = 16 * math.sin(t) ** 3
        up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((across / 17, -up / 17))
    return points


_ARM = 0.32
_REACH = 0.92
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [_ray(45 + 90 * corner) for corner in range(4)],
    "triangle": [_ray(-90 + 120 * corner) for corner in range(3)],
    "star": [_ray(-90 + 36 * corner, 1.0 if corner % 2 == 0 else 0.42) for corner in range(10)],
    "cross": [
        *[(-_ARM, -_REACH), (_ARM, -_REACH), (_ARM, -_ARM), (_REACH, -_ARM), (_REACH, _ARM), (_ARM, _ARM)],
        *[(_ARM, _REACH), (-_ARM, _REACH), (-_ARM, _ARM), (-_REACH, _ARM), (-_REACH, -_ARM), (-_ARM, -_ARM)],
    ],
    "heart": _heart(),
}
