"""How the messages of a chat become a prompt: its formats, and the rules that messages must follow.

A format arranges system message, user messages and assistant messages as ``llava/conversation.py`` of the
original LLaVA does. What differs between templates of one format is data, in ``templates``. A prompt consists
of segments: plain text, a special token by name, or an image. Nothing here knows token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from llava_wire.messages.event import ErrorCode, JobError
from llava_wire.messages.job import ImageRef, Message

__all__ = [
    "ChatTemplateError",
    "ConversationTemplate",
    "PromptError",
    "PromptFormat",
    "PromptTemplate",
    "Segment",
    "SpecialToken",
    "validate_messages",
]

PromptFormat = Literal["colons", "inst", "chatml", "plain", "llava_hf"]


class PromptError(Exception):
    """The model cannot process this prompt; the job ends with ``error``."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.error = JobError(code=code, message=message)


class ChatTemplateError(Exception):
    """The configured template does not fit the model, or the model's own is missing or cannot be read."""


@dataclass(frozen=True)
class SpecialToken:
    """A special token of the vocabulary, by name. A user's text never contains one."""

    token: str


Segment: TypeAlias = str | SpecialToken | ImageRef


class PromptTemplate(Protocol):
    """Renders messages to segments.

    With ``is_hf_style``, texts are tokenized as parts of one text, as transformers does; otherwise each text
    is tokenized alone, as the original does. ``stop`` are the strings that end a response.
    """

    @property
    def name(self) -> str: ...
    @property
    def is_hf_style(self) -> bool: ...
    @property
    def has_bos(self) -> bool: ...
    @property
    def stop(self) -> tuple[str, ...]: ...

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Segment]:
        """Render up to where the response begins. Raises PromptError.

        With ``is_continued``, render up to the end of the last message, a partial response to be continued.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ConversationTemplate:
    """A built-in template. ``separator`` follows the system message and each user message, ``end`` each
    assistant message. In "inst" ``separator`` precedes later user messages; in "chatml" both follow every
    message.

    ``has_bos``: the prompt begins with the beginning-of-sequence token, if the vocabulary has one.
    ``has_image_tags``, for "colons": images are sent as ``<Image>...</Image>`` in a user message of their
    own, which the assistant answers with "Received.".
    """

    name: str
    system: str
    separator: str | SpecialToken
    end: str | SpecialToken
    format: PromptFormat
    user: str = "USER"
    assistant: str = "ASSISTANT"
    has_bos: bool = True
    has_image_tags: bool = False
    stop: tuple[str, ...] = ()

    @property
    def is_hf_style(self) -> bool:
        return self.format == "llava_hf"

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Segment]:
        """See ``PromptTemplate.render``.

        A system message replaces the template's own; an empty one removes it. Several texts of one message
        are joined by newlines.
        """
        first_turn = validate_messages(messages, is_continued=is_continued)
        system = _text(messages[0]) if first_turn else self.system
        render = _RENDERERS[self.format]
        if not is_continued:
            return render(self, system, messages[first_turn:])
        space = "" if self.format in ("chatml", "plain") else " "  # before each assistant message
        partial_response = _text(messages[-1])
        return [*render(self, system, messages[first_turn:-1]), f"{space}{partial_response}"]


def _render_colons(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """``{system} USER: {question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT:``.

    There is no space after the end token. The images of a message precede its text, with a newline after
    each, wherever in the message they were: the original was trained with ``<image>\\n`` first, and its demo
    moves later images to the front.
    """
    segments: list[Segment] = [system, template.separator] if system else []
    for turn in turns:
        if turn.role == "assistant":
            segments += [f"{template.assistant}: {_text(turn)}", template.end]
            continue
        images = _images(turn)
        if template.has_image_tags and images:
            segments += [f"{template.user}: ", *_tagged_images(turn), template.separator]
            segments += [f"{template.assistant}: Received.", template.end]
            images = []
        segments += [f"{template.user}: ", *images, _text(turn), template.separator]
    return [*segments, f"{template.assistant}:"]


def _render_inst(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """``[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{question} [/INST] {answer} </s><s>[INST] ...``."""
    segments: list[Segment] = []
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            segments += [f" {_text(turn)} ", template.end]
            continue
        opening = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if index == 0 and system else ""
        separator = [template.separator] if index > 0 else []
        segments += [*separator, f"[INST] {opening}", *_images(turn), _text(turn), " [/INST]"]
    return segments


def _render_chatml(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """``<|im_start|>system\\n{system}<|im_end|>``, then the same block for each message."""
    start = SpecialToken("<|im_start|>")
    end = [template.end, template.separator]
    segments: list[Segment] = [start, f"system\n{system}", *end] if system else []
    for turn in turns:
        segments += [start, f"{turn.role}\n", *_images(turn), _text(turn), *end]
    return [*segments, start, "assistant\n"]


def _render_plain(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """Images and texts as in pre-training: no roles, each on a line of its own."""
    segments: list[Segment] = [system]
    for turn in turns:
        end = template.separator if turn.role == "user" else template.end
        segments += [*_images(turn), _text(turn), end]
    return segments


def _render_llava_hf(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """llava-hf's chat template: a space after every text, no ``</s>``, no system message of its own."""
    segments: list[Segment] = [f"{system} "] if system else []
    for turn in turns:
        segments.append(f"{template.user if turn.role == 'user' else template.assistant}: ")
        segments += _images(turn)
        segments += [f"{part} " for part in turn.parts if isinstance(part, str)]
    return [*segments, f"{template.assistant}:"]


_RENDERERS: dict[PromptFormat, Callable[[ConversationTemplate, str, Sequence[Message]], list[Segment]]] = {
    "colons": _render_colons,
    "inst": _render_inst,
    "chatml": _render_chatml,
    "plain": _render_plain,
    "llava_hf": _render_llava_hf,
}


def validate_messages(messages: Sequence[Message], *, is_continued: bool = False) -> int:
    """Return the index of the first turn: 1 after a system message, else 0. Raises PromptError.

    User and assistant messages must alternate. The first is a user message, the last one too (with
    ``is_continued``, an assistant message). Only user messages may contain images.
    """
    if not messages:
        raise _invalid("messages is empty: send at least one user message")
    first_turn = 1 if messages[0].role == "system" else 0
    for index, message in enumerate(messages):
        if index >= first_turn:
            _validate_role(messages, index, first_turn)
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


def _validate_role(messages: Sequence[Message], index: int, first_turn: int) -> None:
    role = messages[index].role
    expected = "user" if (index - first_turn) % 2 == 0 else "assistant"
    if role == "system":
        raise _invalid(f"messages[{index}] is a system message: only the first message may be one")
    if role != expected:
        position = f"after messages[{index - 1}]" if index > first_turn else "at the beginning"
        raise _invalid(
            f"messages[{index}] has the role {role!r} where {position} {expected!r} must follow: "
            "user and assistant take turns, so join neighbouring messages of one role"
        )


def _tagged_images(turn: Message) -> list[Segment]:
    images = (part for part in turn.parts if isinstance(part, ImageRef))
    return [segment for image in images for segment in ("<Image>", image, "</Image>")]


def _images(turn: Message) -> list[Segment]:
    return [segment for part in turn.parts if isinstance(part, ImageRef) for segment in (part, "\n")]


def _text(message: Message) -> str:
    return "\n".join(part for part in message.parts if isinstance(part, str))


def _invalid(message: str) -> PromptError:
    return PromptError(ErrorCode.INVALID_REQUEST, message)
