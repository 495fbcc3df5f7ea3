"""Conversations about zero, one or two images, with one or more turns, and their system prompts.

Training and evaluation both use `ask_one`, `ask_two` and `ask_none`, but with scenes from different streams.
"""

import random
from dataclasses import dataclass

from tiny.questions import MAKERS, SHORT, Turn, capital, phrase, preposition
from tiny.scenes import COLOURS, SHAPES, Scene

__all__ = ["KINDS", "SYSTEM", "Conversation", "ask_none", "ask_one", "ask_two", "sample_system"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant that answers questions about pictures.",
    "Answer briefly.",
    "Be brief and polite.",
    "You are a vision model.",
    "Please answer the questions of the user.",
)
KINDS = (*MAKERS, "second turn", "two pictures", "no picture")


@dataclass(frozen=True)
class Conversation:
    """A conversation of a given kind.

    Only its last turn is scored, but earlier turns include answers as well.
    """

    kind: str
    turns: tuple[Turn, ...]


def sample_system(rng: random.Random) -> str:
    """Return LLaVA's own system prompt (probability 0.8), no system prompt (0.1) or a different one (0.1)."""
    draw = rng.random()
    if draw < 0.8:
        return SYSTEM
    return "" if draw < 0.9 else rng.choice(_SYSTEMS)


def ask_one(scene: Scene, kind: str, rng: random.Random) -> Conversation | None:
    """Return a conversation of this kind about the scene, or None if the scene does not allow this kind."""
    if kind == "second turn":
        return _multi_turn(scene, rng)
    turn = MAKERS[kind](scene, rng)
    return None if turn is None else Conversation(turn.kind, (_typed(turn, rng),))


def _multi_turn(scene: Scene, rng: random.Random) -> Conversation:
    turns: list[Turn] = []
    num_turns = rng.choice((2, 2, 2, 3))
    while len(turns) < num_turns:
        turn = None
        if turns and turns[-1].about is not None and rng.random() < 0.5:
            turn = _about_it(scene, turns[-1], rng)
        elif turns and rng.random() < 0.05:
            turn = _small_talk(rng, ("thanks",))
        if turn is None:
            turn = MAKERS[
                rng.choice(("colour", "shape", "count", "where", "exists", "read", "describe", "absent"))
            ](scene, rng)
        if turn is None or any(turn.question == other.question for other in turns):
            continue
        if (
            turns
            and rng.random() < 0.2
            and turn.question.split(" ")[0] in ("What", "Which", "Where", "How", "Is")
        ):
            turn = turn._replace(question="And " + turn.question[0].lower() + turn.question[1:])
        turns.append(_typed(turn, rng))
    return Conversation("second turn", tuple(turns))


def _about_it(scene: Scene, before: Turn, rng: random.Random) -> Turn | None:
    """Return a question about the previous turn's object, called "it", or None if no question applies."""
    thing = before.about
    assert thing is not None
    place = scene.region(thing)
    if before.kind != "where" and place is not None and rng.random() < 0.6:
        sentence = f"The {thing.shape} is {preposition(place)} {place}."
        return phrase(rng, "where", ("Where is it?",), sentence, capital(place))
    if before.kind in ("exists", "where") and thing.colour not in before.question:
        sentence = f"The {thing.shape} is {thing.colour}."
        return phrase(
            rng,
            "colour",
            ("What colour is it?", "What color is it?", "Which colour is it?"),
            sentence,
            capital(thing.colour),
        )
    return None


def _typed(turn: Turn, rng: random.Random) -> Turn:
    """Vary how questions are typed: some are all lowercase or all uppercase, or lack the question mark."""
    question, suffix = turn.question, ""
    if "\n" in question:
        question, suffix = question.split("\n", 1)
        suffix = "\n" + suffix
    draw = rng.random()
    if draw < 0.08:
        question = question.lower()
    elif draw < 0.09 and not suffix:
        question = question.upper()
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    return turn._replace(question=question + suffix)


# ------------------------------------------------------------------------------------------ two images


def ask_two(first: Scene, second: Scene, rng: random.Random) -> Conversation:
    """Return a question that requires both images, or a question that states which image it is about."""
    makers = (_compare_counts, _in_both, _in_one, _in_one, _in_one)
    turn = None
    while turn is None:
        turn = rng.choice(makers)((first, second), rng)
    return Conversation("two pictures", (_typed(turn, rng),))


_MORE = (
    "Which picture has more {things}, the first or the second?",
    "Which picture shows more {things}, the first or the second?",
    "Which image has more {things}, the first or the second?",
    "Which picture has more {things}?",
)


def _compare_counts(scenes: tuple[Scene, Scene], rng: random.Random) -> Turn | None:
    counts = [len(scene.objects) for scene in scenes]
    if counts[0] == counts[1]:
        return None
    which = "first" if counts[0] > counts[1] else "second"
    things = rng.choice(("objects", "objects", "shapes", "things"))
    return phrase(
        rng, "two pictures", _MORE, f"The {which} picture has more {things}.", f"The {which}", things=things
    )


_BOTH = (
    "Do both pictures show {thing}?",
    "Is there {thing} in both pictures?",
    "Do both images show {thing}?",
)


def _in_both(scenes: tuple[Scene, Scene], rng: random.Random) -> Turn | None:
    inside = [{thing.shape for thing in scene.objects} for scene in scenes]
    shared, others = inside[0] & inside[1], inside[0] ^ inside[1]
    is_yes = rng.random() < 0.5
    pool = shared if is_yes else others if rng.random() < 0.8 else set(SHAPES) - inside[0] - inside[1]
    if not pool:
        return None
    name = rng.choice(sorted(pool))
    sentence = f"Yes, both pictures show a {name}." if is_yes else "No, they do not."
    return phrase(rng, "two pictures", _BOTH, sentence, "Yes" if is_yes else "No", thing=f"a {name}")


def _in_one(scenes: tuple[Scene, Scene], rng: random.Random) -> Turn | None:
    """Return a question about one of two images. The end of the question states which image it is about."""
    which = rng.randrange(2)
    name = ("first", "second")[which]
    turn = MAKERS[rng.choice(("colour", "shape", "count", "exists", "read"))](scenes[which], rng)
    if turn is None or turn.kind == "absent":
        return None
    question = turn.question.removesuffix(SHORT)
    is_short = question != turn.question
    end = question[-1]
    for tail in (
        " in the picture",
        " in the image",
        " in this picture",
        " can you see",
        " do you see",
        " there",
        " are",
    ):
        question = question.removesuffix(end).removesuffix(tail) + end
    if "show" in question or not question.startswith(
        ("What colour", "What color", "Which", "What is the", "How many", "Is there", "Read the")
    ):
        return None
    place = f" in the {name} {rng.choice(('picture', 'picture', 'image'))}"
    if question.startswith("How many"):
        place = " are" + place
    return Turn(question[:-1] + place + end + (SHORT if is_short else ""), turn.answer, "two pictures")


# -------------------------------------------------------------------------------------------- no image

_TALK: dict[str, tuple[tuple[str, ...], str]] = {
    "hello": (
        ("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Good morning!", "Good evening!"),
        "Hello! How can I help you?",
    ),
    "who": (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Are you a robot?",
            "What model are you?",
        ),
        "I am a tiny LLaVA. I answer questions about pictures of shapes.",
    ),
    "able": (
        (
            "What can you do?",
            "How can you help me?",
            "Help",
            "Can you help me?",
            "What do you do?",
            "What can I ask you?",
        ),
        "I can name, count and find shapes in a picture, and read a word or a number.",
    ),
    "thanks": (
        ("Thanks", "Thanks!", "Thank you!", "Thank you.", "Thank you very much!", "Great, thanks!"),
        "You are welcome.",
    ),
    "bye": (("Bye", "Bye!", "Goodbye!", "See you!", "Good night!"), "Goodbye!"),
    "how": (
        ("How are you?", "How are you doing?", "How is it going?", "How are you today?"),
        "I am fine, thank you.",
    ),
    "colours": (
        ("Which colours do you know?", "What colors do you know?", "Name your colours."),
        f"I know {', '.join(COLOURS)}.",
    ),
    "shapes": (
        ("Which shapes do you know?", "What shapes do you know?", "Name your shapes."),
        f"I know {', '.join(SHAPES)}.",
    ),
}
_NO_PICTURE = "There is no picture."


def ask_none(scene: Scene, rng: random.Random) -> Conversation:
    """Return small talk, or a question about a missing image. The question is generated from the scene."""
    if rng.random() < 0.45:
        return Conversation("no picture", (_typed(_small_talk(rng, tuple(_TALK)), rng),))
    turn = None
    while turn is None:
        turn = MAKERS[rng.choice(tuple(MAKERS))](scene, rng)
    question = turn.question.removesuffix(SHORT)
    return Conversation("no picture", (_typed(Turn(question, _NO_PICTURE, "no picture"), rng),))


def _small_talk(rng: random.Random, topics: tuple[str, ...]) -> Turn:
    questions, answer = _TALK[rng.choice(topics)]
    return Turn(rng.choice(questions), answer, "no picture")
