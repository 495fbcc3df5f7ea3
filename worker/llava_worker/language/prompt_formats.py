"""How a conversation becomes a prompt: shapes, and what all of them ask of the messages.

A shape puts system sentence, questions and answers together, as ``llava/conversation.py`` of the original
LLaVA does; what differs between templates of one shape is data and stands in ``templates``. A piece is plain
text, a special token by its name, or a picture; nothing here knows token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from llava_wire.messages.event import ErrorCode, JobError
from llava_wire.messages.job import ImageRef, Message

__all__ = ["Conversation", "Piece", "PromptError", "Shape", "Special", "Template", "check_turns"]

Shape = Literal["colons", "inst", "chatml", "plain", "llava_hf"]


class PromptError(Exception):
    """A conversation that the model cannot be asked; ``error`` is what its owner gets to read."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.error = JobError(code=code, message=message)


@dataclass(frozen=True)
class Special:
    """A special token of the vocabulary, named; a user's text can never become one."""

    token: str


Piece: TypeAlias = str | Special | ImageRef


class Template(Protocol):
    """Messages to pieces. ``is_whole``: texts are tokenized as transformers does it, as stretches of one
    text; else each alone, as the original does. ``stop`` are texts that end an answer."""

    @property
    def name(self) -> str: ...
    @property
    def is_whole(self) -> bool: ...
    @property
    def has_bos(self) -> bool: ...
    @property
    def stop(self) -> tuple[str, ...]: ...

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Piece]:
        """The conversation up to where the model's answer begins; or, with ``is_continued``, up to where its
        last message ends, which is an answer to go on with. Raises PromptError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A template as data. ``separator`` follows the system sentence and each question, ``end`` each answer;
    in "inst" ``separator`` precedes later questions, in "chatml" both follow every turn.

    ``has_bos``: the prompt begins with the beginning-of-sequence token, if the vocabulary has one.
    ``has_image_tags``, for "colons": pictures come as ``<Image>...</Image>`` in a turn of their own, which
    is answered with "Received.".
    """

    name: str
    system: str
    separator: str | Special
    end: str | Special
    shape: Shape
    user: str = "USER"
    assistant: str = "ASSISTANT"
    has_bos: bool = True
    has_image_tags: bool = False
    stop: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.shape == "llava_hf"

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Piece]:
        """As ``Template.render``.

        A system message, if there is one, takes the place of the template's own; an empty one leaves none.
        Several texts of one message stand on lines of their own.
        """
        first_turn = check_turns(messages, is_continued=is_continued)
        system = _text(messages[0]) if first_turn else self.system
        if not is_continued:
            return _SHAPES[self.shape](self, system, messages[first_turn:])
        lead = "" if self.shape in ("chatml", "plain") else " "  # what stands before each answer
        begun = _text(messages[-1])
        return [*_SHAPES[self.shape](self, system, messages[first_turn:-1]), f"{lead}{begun}"]


def _render_colons(conversation: Conversation, system: str, turns: Sequence[Message]) -> list[Piece]:
    """``{system} USER: {question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT:``.

    There is no space after the end token. The pictures of a question stand before its text, a newline after
    each, wherever in the message they were: the original trained with ``<image>\\n`` first, and its demo
    moves a late picture to the front.
    """
    pieces: list[Piece] = [system, conversation.separator] if system else []
    for turn in turns:
        if turn.role == "assistant":
            pieces += [f"{conversation.assistant}: {_text(turn)}", conversation.end]
            continue
        shown = _images(turn)
        if conversation.has_image_tags and shown:
            pieces += [f"{conversation.user}: ", *_tagged(turn), conversation.separator]
            pieces += [f"{conversation.assistant}: Received.", conversation.end]
            shown = []
        pieces += [f"{conversation.user}: ", *shown, _text(turn), conversation.separator]
    return [*pieces, f"{conversation.assistant}:"]


def _render_inst(conversation: Conversation, system: str, turns: Sequence[Message]) -> list[Piece]:
    """``[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{question} [/INST] {answer} </s><s>[INST] ...``."""
    pieces: list[Piece] = []
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            pieces += [f" {_text(turn)} ", conversation.end]
            continue
        opening = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if index == 0 and system else ""
        before = [conversation.separator] if index > 0 else []
        pieces += [*before, f"[INST] {opening}", *_images(turn), _text(turn), " [/INST]"]
    return pieces


def _render_chatml(conversation: Conversation, system: str, turns: Sequence[Message]) -> list[Piece]:
    """``<|im_start|>system\\n{system}<|im_end|>``, then a block of that kind for each turn."""
    start = Special("<|im_start|>")
    after = [conversation.end, conversation.separator]
    pieces: list[Piece] = [start, f"system\n{system}", *after] if system else []
    for turn in turns:
        pieces += [start, f"{turn.role}\n", *_images(turn), _text(turn), *after]
    return [*pieces, start, "assistant\n"]


def _render_plain(conversation: Conversation, system: str, turns: Sequence[Message]) -> list[Piece]:
    """Pictures and texts, as in pre-training: no roles, a line for each."""
    pieces: list[Piece] = [system]
    for turn in turns:
        pieces += [
            *_images(turn),
            _text(turn),
            conversation.separator if turn.role == "user" else conversation.end,
        ]
    return pieces


def _render_llava_hf(conversation: Conversation, system: str, turns: Sequence[Message]) -> list[Piece]:
    """llava-hf's chat template: a space after every text, none of ``</s>``, no system sentence of its own."""
    pieces: list[Piece] = [f"{system} "] if system else []
    for turn in turns:
        pieces.append(f"{conversation.user if turn.role == 'user' else conversation.assistant}: ")
        pieces += _images(turn)
        pieces += [f"{part} " for part in turn.parts if isinstance(part, str)]
    return [*pieces, f"{conversation.assistant}:"]


_SHAPES: dict[Shape, Callable[[Conversation, str, Sequence[Message]], list[Piece]]] = {
    "colons": _render_colons,
    "inst": _render_inst,
    "chatml": _render_chatml,
    "plain": _render_plain,
    "llava_hf": _render_llava_hf,
}


def check_turns(messages: Sequence[Message], *, is_continued: bool = False) -> int:
    """The index of the first turn: 1 behind a system message, else 0. Raises PromptError.

    Questions and answers alternate, beginning and ending with a question (if ``is_continued``, with an
    answer); only questions have pictures.
    """
    if not messages:
        raise _invalid("messages is empty: send at least one user message")
    first_turn = 1 if messages[0].role == "system" else 0
    for index, message in enumerate(messages):
        if index >= first_turn:
            _check_turn(messages, index, first_turn)
        if message.role != "user" and any(isinstance(part, ImageRef) for part in message.parts):
            raise _invalid(
                f"messages[{index}] ({message.role}) has a picture: put pictures into user messages"
            )
    if len(messages) == first_turn:
        raise _invalid("messages has no user message: send at least one")
    if is_continued and messages[-1].role != "assistant":
        raise _invalid("the last message is not the assistant's: there is nothing to continue")
    if messages[-1].role == "assistant" and not is_continued:
        raise _invalid("the last message is the assistant's: end with the user message to be answered")
    return first_turn


def _check_turn(messages: Sequence[Message], index: int, first_turn: int) -> None:
    role = messages[index].role
    expected = "user" if (index - first_turn) % 2 == 0 else "assistant"
    if role == "system":
        raise _invalid(f"messages[{index}] is a system message: only the first message may be one")
    if role != expected:
        before = f"after messages[{index - 1}]" if index > first_turn else "at the beginning"
        raise _invalid(
            f"messages[{index}] has the role {role!r} where {before} {expected!r} must follow: "
            "user and assistant take turns, so join neighbouring messages of one role"
        )


def _tagged(turn: Message) -> list[Piece]:
    images = (part for part in turn.parts if isinstance(part, ImageRef))
    return [piece for image in images for piece in ("<Image>", image, "</Image>")]


def _images(turn: Message) -> list[Piece]:
    return [piece for part in turn.parts if isinstance(part, ImageRef) for piece in (part, "\n")]


def _text(message: Message) -> str:
    return "\n".join(part for part in message.parts if isinstance(part, str))


def _invalid(message: str) -> PromptError:
    return PromptError(ErrorCode.INVALID_REQUEST, message)
