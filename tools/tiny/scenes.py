"""Random scenes of colored shapes, each determined by a stream name and an index.

A scene describes the content of an image, with positions in pixels. `drawing` renders it and `questions` asks
about it. Both use only the information in the scene.
"""

import functools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from PIL import ImageFont

__all__ = ["COLOURS", "REGIONS", "SHAPES", "WORDS", "Object", "Scene", "Text", "font", "sample_scene"]

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "blue": (50, 90, 220),
    "green": (50, 160, 70),
    "yellow": (245, 220, 50),
    "orange": (245, 140, 30),
    "purple": (145, 60, 180),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
}
# Probabilities are unequal because POPE's 'popular' negatives require some shapes to be common.
SHAPES: dict[str, float] = {
    "circle": 0.22,
    "square": 0.20,
    "triangle": 0.18,
    "star": 0.15,
    "cross": 0.13,
    "heart": 0.12,
}
_PRINTED = """
CAT DOG SUN MAP BUS CAR CUP HAT KEY BOX BED PEN RED SKY SEA TEA ZOO EGG JAM OAK TREE FISH BIRD MOON
STAR BOOK DOOR LAMP SHIP RAIN SNOW WIND FIRE GOLD LION BEAR FROG DUCK MILK CAKE HOUSE TABLE CHAIR
WATER LIGHT APPLE BREAD HORSE MOUSE TRAIN PLANE RIVER STONE GRASS CLOUD MUSIC PAPER CLOCK QUEEN
JUICE OPEN STOP EXIT HELLO
"""
WORDS = tuple(_PRINTED.split())
REGIONS = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_REGION_MARGIN = 0.05  # fraction of the side; objects closer to a border than this have no region


@dataclass(frozen=True)
class Object:
    """A shape with its center and the radius of its bounding circle, in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: RGB

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


class Text(NamedTuple):
    """Printed characters. (x, y) is the top left corner of their bounding box."""

    characters: str
    x: float
    y: float
    width: float
    height: float
    font_size: int
    rgb: RGB

    @property
    def is_number(self) -> bool:
        return self.characters.isdigit()


@dataclass(frozen=True)
class Scene:
    """The content of an image. `objects` are sorted from left to right."""

    width: int
    height: int
    backgrounds: tuple[RGB, RGB]  # the same color, unless the background is a gradient
    is_gradient_vertical: bool
    noise: int  # maximum change to a channel; 0 means no noise
    noise_seed: int
    objects: tuple[Object, ...]
    text: Text | None

    def region(self, thing: Object) -> str | None:
        """Return which ninth of the image contains the object's center, or None if it is near a border."""
        column, row = _third(thing.x / self.width), _third(thing.y / self.height)
        return None if column is None or row is None else REGIONS[row][column]


def _third(share: float) -> int | None:
    if min(abs(share - 1 / 3), abs(share - 2 / 3)) < _REGION_MARGIN:
        return None
    return int(share * 3)


@functools.lru_cache(maxsize=256)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in font (Aileron), which makes images identical on every machine."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont), "Pillow was built without FreeType."
    return found


def sample_scene(stream: str, index: int) -> Scene:
    """Return scene `index` of a stream. The result is the same in every call and on every machine."""
    rng = random.Random(f"scene/{stream}/{index}")
    width, height = _sample_size(rng)
    has_text = rng.random() < 0.45
    num_objects = (
        rng.choices((0, 1, 2, 3, 4, 5), weights=(12, 18, 20, 20, 20, 10))[0]
        if has_text
        else rng.randint(1, 5)
    )
    kinds = _sample_kinds(rng, num_objects)
    backgrounds = _sample_backgrounds(rng, [COLOURS[colour] for _, colour in kinds])
    text = _sample_text(rng, width, height, backgrounds) if has_text else None
    objects = _place(rng, kinds, width, height, text)
    return Scene(
        width=width,
        height=height,
        backgrounds=backgrounds,
        is_gradient_vertical=rng.random() < 0.5,
        noise=rng.choice((0, 0, 0, 6, 12)),
        noise_seed=rng.getrandbits(32),
        objects=objects,
        text=text,
    )


def _sample_size(rng: random.Random) -> tuple[int, int]:
    long = int(120 * (640 / 120) ** rng.random())
    if rng.random() < 0.3:
        return long, long
    short = max(100, int(long * rng.uniform(0.5, 1.0)))
    return (long, short) if rng.random() < 0.6 else (short, long)


def _sample_kinds(rng: random.Random, num_objects: int) -> list[tuple[str, str]]:
    """Return the shape and color of each object.

    To make counts above one more frequent, 45 % of the scenes use only two shapes or two colors.
    """
    shapes, colours = list(SHAPES), list(COLOURS)
    theme = rng.random()
    if theme < 0.25:
        shapes = rng.sample(shapes, 2)
    elif theme < 0.45:
        colours = rng.sample(colours, 2)
    weights = [SHAPES[shape] for shape in shapes]
    return [(rng.choices(shapes, weights)[0], rng.choice(colours)) for _ in range(num_objects)]


def _sample_backgrounds(rng: random.Random, taken: list[RGB]) -> tuple[RGB, RGB]:
    first = _sample_background(rng, taken)
    if rng.random() < 0.6:
        return first, first
    shift = [rng.randint(-45, 45) for _ in range(3)]
    second = _rgb(channel + change for channel, change in zip(first, shift, strict=True))
    return (first, second) if all(_distance(second, rgb) > 90 for rgb in taken) else (first, first)


def _sample_background(rng: random.Random, taken: list[RGB]) -> RGB:
    best, best_gap = (128, 128, 128), -1.0
    for _ in range(40):
        grey, tint = rng.randint(20, 250), rng.uniform(0.1, 0.6)
        colour = _rgb(grey * (1 - tint) + rng.randint(0, 255) * tint for _ in range(3))
        gap = min((_distance(colour, rgb) for rgb in taken), default=999.0)
        if gap > 110:
            return colour
        if gap > best_gap:
            best, best_gap = colour, gap
    return best


def _sample_text(rng: random.Random, width: int, height: int, backgrounds: tuple[RGB, RGB]) -> Text:
    """Return a word or a number with up to four digits, shortened if it does not fit at a readable size."""
    if rng.random() < 0.5:
        length = rng.choice((1, 2, 2, 3, 3, 4))
        characters = (
            str(rng.randint(10 ** (length - 1), 10**length - 1)) if length > 1 else str(rng.randint(0, 9))
        )
    else:
        characters = rng.choice(WORDS)
    long = max(width, height)
    size = max(12, int(long * rng.uniform(0.18, 0.27)))
    smallest = max(12, int(long * 0.17))
    while font(size).getlength(characters) > 0.92 * width and size > smallest:
        size -= 1
    if font(size).getlength(characters) > 0.92 * width:
        characters = (
            rng.choice([word for word in WORDS if len(word) == 3]) if characters.isalpha() else characters[:2]
        )
    left, top, right, bottom = font(size).getbbox(characters)
    box_width, box_height = right - left, bottom - top
    luminance = sum(sum(colour) for colour in backgrounds) / 6
    return Text(
        characters=characters,
        x=rng.uniform(0.02 * width, max(0.02 * width, 0.98 * width - box_width)),
        y=rng.uniform(0.02 * height, max(0.02 * height, 0.98 * height - box_height)),
        width=box_width,
        height=box_height,
        font_size=size,
        rgb=(15, 15, 15) if luminance > 125 else (245, 245, 245),
    )


def _place(
    rng: random.Random, kinds: list[tuple[str, str]], width: int, height: int, text: Text | None
) -> tuple[Object, ...]:
    """Place the objects so that they do not overlap each other or the text. Omit objects that do not fit."""
    placed: list[Object] = []
    long = max(width, height)
    for shape, colour in kinds:
        for attempt in range(60):
            is_large = rng.random() < 0.45 and attempt < 20
            radius = long * (rng.uniform(0.13, 0.18) if is_large else rng.uniform(0.085, 0.11))
            x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
            if _has_room(x, y, radius, long, placed, text):
                angle = rng.uniform(-12, 12)
                rgb = _rgb(channel + rng.randint(-12, 12) for channel in COLOURS[colour])
                placed.append(Object(shape, colour, x, y, radius, angle, rgb))
                break
    return tuple(sorted(placed, key=lambda thing: thing.x))


def _has_room(x: float, y: float, radius: float, long: int, placed: list[Object], text: Text | None) -> bool:
    for other in placed:
        apart = ((x - other.x) ** 2 + (y - other.y) ** 2) ** 0.5
        # A minimum horizontal distance keeps the order from left to right unambiguous.
        if apart < 1.05 * (radius + other.radius) or abs(x - other.x) < 0.03 * long:
            return False
    if text is None:
        return True
    nearest_x = min(max(x, text.x), text.x + text.width)
    nearest_y = min(max(y, text.y), text.y + text.height)
    return (x - nearest_x) ** 2 + (y - nearest_y) ** 2 > (radius + 0.01 * long) ** 2


def _rgb(channels: Iterable[float]) -> RGB:
    red, green, blue = (min(255, max(0, round(value))) for value in channels)
    return red, green, blue


def _distance(one: RGB, other: RGB) -> float:
    return math.dist(one, other)
