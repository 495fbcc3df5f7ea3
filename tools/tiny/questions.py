"""Questions about one scene, with their correct answers and several phrasings per kind of question.

Each function in `MAKERS` takes a scene and a random number generator. It returns a turn, or None if the
question does not apply to the scene. Answers are short sentences. If a question ends with the suffix from
LLaVA-1.5's short-answer data, the answer is a single word or phrase.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from tiny.phrasings import COLOUR, COUNT, DESCRIBE, EXISTS, READ, READ_NUMBER, READ_WORD, SHAPE, WHERE
from tiny.scenes import COLOURS, SHAPES, Object, Scene

__all__ = ["LETTERS", "MAKERS", "SHORT", "Turn", "capital", "phrase", "preposition"]

SHORT = "\nAnswer the question using a single word or phrase."
LETTERS = "\nAnswer with the option's letter from the given choices directly."


class Turn(NamedTuple):
    """A question and its answer.

    `about` is the object that "it" refers to in the next turn. `kind` is the question type for scoring.
    """

    question: str
    answer: str
    kind: str
    about: Object | None = None


def phrase(
    rng: random.Random, kind: str, phrasings: tuple[str, ...], sentence: str, short: str, **names: str
) -> Turn:
    """Return a question with a random phrasing. 35 % of all questions ask for a short answer."""
    question = rng.choice(phrasings).format(**names)
    if rng.random() < 0.35:
        return Turn(question + SHORT, short, kind)
    return Turn(question, sentence, kind)


def _numbered(count: int, noun: str) -> str:
    """Return the count and the noun, for example '1 red circle' or '2 crosses'."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {_plural(noun)}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _unique(scene: Scene, key: Callable[[Object], str]) -> list[Object]:
    counts = Counter(key(thing) for thing in scene.objects)
    return [thing for thing in scene.objects if counts[key(thing)] == 1]


def colour(scene: Scene, rng: random.Random) -> Turn | None:
    things = _unique(scene, lambda thing: thing.shape)
    if not things:
        return None
    thing = rng.choice(things)
    sentence = f"The {thing.shape} is {thing.colour}."
    turn = phrase(rng, "colour", COLOUR, sentence, capital(thing.colour), thing=thing.shape)
    return turn._replace(about=thing)


def shape(scene: Scene, rng: random.Random) -> Turn | None:
    things = _unique(scene, lambda thing: thing.colour)
    if not things:
        return None
    thing = rng.choice(things)
    sentence = f"The {thing.colour} object is a {thing.shape}."
    turn = phrase(rng, "shape", SHAPE, sentence, capital(thing.shape), thing=thing.colour)
    return turn._replace(about=thing)


def count(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask how many objects there are, or how many have a given shape, color or both.

    In about one in eight questions, the shape and color are random and may not occur in the scene.
    """
    noun, number = _countable(scene, rng)
    verb = "is" if number == 1 else "are"
    amount = f"no {_plural(noun)}" if number == 0 else _numbered(number, noun)
    things = _plural(noun)
    if noun == "object":
        things = rng.choice(("objects", "objects", "shapes", "things"))
    return phrase(rng, "count", COUNT, f"There {verb} {amount}.", str(number), things=things)


def _countable(scene: Scene, rng: random.Random) -> tuple[str, int]:
    if not scene.objects or rng.random() < 0.35:
        return "object", len(scene.objects)
    thing = rng.choice(scene.objects)
    if rng.random() < 0.12:
        thing = Object(rng.choice(list(SHAPES)), rng.choice(list(COLOURS)), 0, 0, 0, 0, (0, 0, 0))
    draw = rng.random()
    if draw < 0.45:
        return thing.shape, sum(other.shape == thing.shape for other in scene.objects)
    if draw < 0.85:
        return f"{thing.colour} object", sum(other.colour == thing.colour for other in scene.objects)
    return thing.name, sum(other.name == thing.name for other in scene.objects)


def where(scene: Scene, rng: random.Random) -> Turn | None:
    things = [thing for thing in _unique(scene, lambda thing: thing.name) if scene.region(thing)]
    if not things:
        return None
    thing = rng.choice(things)
    is_shape_enough = sum(other.shape == thing.shape for other in scene.objects) == 1
    name = thing.shape if is_shape_enough and rng.random() < 0.6 else thing.name
    place = scene.region(thing)
    assert place is not None
    sentence = f"The {name} is {preposition(place)} {place}."
    turn = phrase(rng, "where", WHERE, sentence, capital(place), thing=name)
    return turn._replace(about=thing)


def preposition(place: str) -> str:
    if place in ("left", "right"):
        return "on the"
    return "at the" if place in ("top", "bottom") else "in the"


def exists(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask whether an object exists. Half of the answers are "yes". Absent objects are sampled as in POPE."""
    if not scene.objects:
        return None
    is_there = rng.random() < 0.5
    thing = rng.choice(scene.objects) if is_there else None
    if rng.random() < 0.4:
        absent = [kind for kind in SHAPES if all(other.shape != kind for other in scene.objects)]
        name = thing.shape if thing else rng.choices(absent, [SHAPES[kind] for kind in absent])[0]
    else:
        name = thing.name if thing else _absent_name(scene, rng)
    article = "an" if name[0] in "o" else "a"
    sentence = f"Yes, there is {article} {name}." if is_there else f"No, there is no {name}."
    turn = phrase(rng, "exists", EXISTS, sentence, "Yes" if is_there else "No", thing=f"{article} {name}")
    return turn._replace(about=thing if thing and _is_unique(scene, thing, name) else None)


def _is_unique(scene: Scene, thing: Object, name: str) -> bool:
    key = thing.shape if name == thing.shape else thing.name
    return sum(key in (other.shape, other.name) for other in scene.objects) == 1


def _absent_name(scene: Scene, rng: random.Random) -> str:
    """Return an object that is not in the scene, sampled as in POPE.

    The object is random, popular (a common shape) or adversarial (its color and shape occur separately).
    """
    there = {thing.name for thing in scene.objects}
    draw = rng.random()
    for _ in range(40):
        kind, tint = rng.choice(list(SHAPES)), rng.choice(list(COLOURS))
        if draw < 0.25:
            kind = rng.choice(("circle", "square", "triangle"))
        elif draw < 0.75:
            if rng.random() < 0.5 or len(scene.objects) > 1:
                kind = rng.choice(scene.objects).shape
            if kind not in {thing.shape for thing in scene.objects} or rng.random() < 0.7:
                tint = rng.choice(scene.objects).colour
        if f"{tint} {kind}" not in there:
            return f"{tint} {kind}"
    return next(f"{t} {k}" for t in COLOURS for k in SHAPES if f"{t} {k}" not in there)


def read(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask for the printed word or number. Also do so for 10 % of the scenes without text."""
    text = scene.text
    if text is None:
        if rng.random() < 0.9:
            return None
        return phrase(rng, "absent", READ, "There is no text.", "None")
    own = READ_NUMBER if text.is_number else READ_WORD
    sentence = f"The number is {text.characters}." if text.is_number else f'The word is "{text.characters}".'
    return phrase(rng, "read", rng.choice((READ, own)), sentence, text.characters)


def describe(scene: Scene, rng: random.Random) -> Turn:
    """Ask for a description. The answer lists all objects from left to right, then the text."""
    names = [f"{'an' if thing.name[0] == 'o' else 'a'} {thing.name}" for thing in scene.objects]
    if scene.text is not None:
        text = scene.text.characters
        names.append(f"the number {text}" if scene.text.is_number else f'the word "{text}"')
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return Turn(rng.choice(DESCRIBE), f"The picture shows {listed}.", "describe")


def absent(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask about an object that is not in the scene."""
    shapes = [kind for kind in SHAPES if all(thing.shape != kind for thing in scene.objects)]
    colours = [tint for tint in COLOURS if all(thing.colour != tint for thing in scene.objects)]
    draw = rng.random()
    if draw < 0.4:
        kind = rng.choice(shapes)
        return phrase(rng, "absent", COLOUR, f"There is no {kind}.", "None", thing=kind)
    if draw < 0.6:
        tint = rng.choice(colours)
        return phrase(rng, "absent", SHAPE, f"There is no {tint} object.", "None", thing=tint)
    name = rng.choice(shapes) if draw < 0.8 or not scene.objects else _absent_name(scene, rng)
    return phrase(rng, "absent", WHERE, f"There is no {name}.", "None", thing=name)


def options(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask about a color, shape or count as a multiple-choice question. The answer is a letter."""
    for _ in range(8):
        turn = rng.choice((colour, shape, count))(scene, rng)
        if turn is not None:
            break
    else:
        return None
    pools = {"colour": list(COLOURS), "shape": list(SHAPES), "count": [str(number) for number in range(7)]}
    truth = _truth(turn)
    wrong = rng.sample([word for word in pools[turn.kind] if word != truth], rng.choice((1, 2, 3, 3)))
    choices = [truth, *wrong]
    rng.shuffle(choices)
    lines = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=False))
    question = turn.question.removesuffix(SHORT) + lines + LETTERS
    return Turn(question, "ABCD"[choices.index(truth)], "options")


def _truth(turn: Turn) -> str:
    if turn.question.endswith(SHORT):
        return turn.answer.lower()
    last = turn.answer.rstrip(".").split(" ")
    if turn.kind != "count":
        return last[-1]
    return "0" if last[2] == "no" else last[2]


MAKERS: dict[str, Callable[[Scene, random.Random], Turn | None]] = {
    "colour": colour,
    "shape": shape,
    "count": count,
    "where": where,
    "exists": exists,
    "read": read,
    "describe": describe,
    "absent": absent,
    "options": options,
}
