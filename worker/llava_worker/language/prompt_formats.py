"""Prompt formats of the built-in conversation templates, and validation of messages.

A format arranges system, user and assistant messages as in ``llava/conversation.py`` of the original LLaVA.
Templates with the same format differ only in their data (see ``conversation_templates``). A rendered prompt
consists of segments. Each segment is plain text, the name of a special token, or an image. This module does
not handle token IDs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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

PromptFormat = Literal["colons", "inst", "chatml", "llama_3", "phi_3", "plain", "llava_hf", "paligemma"]


class PromptError(Exception):
    """The model cannot process this prompt. The job fails with ``error``."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = JobError(code=code, message=message, param=param)


class ChatTemplateError(Exception):
    """The configured template does not match the model, or the model's own template is missing or invalid."""


@dataclass(frozen=True)
class SpecialToken:
    """A special token, identified by its name in the vocabulary. User text never contains special tokens."""

    token: str


Segment: TypeAlias = str | SpecialToken | ImageRef


class PromptTemplate(Protocol):
    """The interface of templates, which render messages to segments.

    If ``is_hf_style`` is true, the prompt is tokenized as a single text, as in transformers. Otherwise, it is
    split at the images, and each part is tokenized independently, as in the original LLaVA. ``stop`` lists
    the strings that end a response. ``definition`` contains everything that distinguishes the template from
    others, as text.
    """

    @property
    def name(self) -> str: ...
    @property
    def definition(self) -> str: ...
    @property
    def is_hf_style(self) -> bool: ...
    @property
    def has_bos(self) -> bool: ...
    @property
    def stop(self) -> tuple[str, ...]: ...

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Segment]:
        """Render the prompt up to the beginning of the response. Raises PromptError.

        If ``is_continued`` is true, the last message is a partial response, and the prompt ends with its
        text.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ConversationTemplate:
    """A built-in template.

    ``separator`` follows the system message and each user message. ``end`` follows each assistant message.
    There are exceptions: in the "inst" format, ``separator`` precedes every user message except the first; in
    the "chatml" format, ``end`` and ``separator`` follow every message; in the "llama_3" format,
    ``separator`` precedes and ``end`` follows every message; in the "phi_3" format, ``separator`` precedes
    every message, and ``end`` and ``separator`` follow it.

    If ``has_bos`` is true, the prompt begins with the beginning-of-sequence token, provided that the
    vocabulary has one. If ``has_image_tags`` is true (only for "colons"), images are rendered as
    ``<Image>...</Image>`` in a separate user message, followed by an assistant message whose text is
    "Received.".
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
    def definition(self) -> str:
        # Default values are omitted, so that fields added by a later release do not change the definition.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        return repr({name: value for name, value in values.items() if value != defaults[name]})

    @property
    def is_hf_style(self) -> bool:
        return self.format in ("llava_hf", "paligemma")

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Segment]:
        """Implement ``PromptTemplate.render``.

        A system message replaces the template's default system message; an empty one removes it. The texts of
        a message are joined by newlines.
        """
        first_turn = validate_messages(messages, is_continued=is_continued)
        system = _text(messages[0]) if first_turn else self.system
        render = _RENDERERS[self.format]
        if not is_continued:
            return render(self, system, messages[first_turn:])
        space = (
            "" if self.format in ("chatml", "llama_3", "phi_3", "plain", "paligemma") else " "
        )  # before each assistant message
        partial_response = _text(messages[-1])
        return [*render(self, system, messages[first_turn:-1]), f"{space}{partial_response}"]


def _render_colons(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """``{system} USER: {question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT:``.

    There is no space after the end token. The images of a message precede its text, regardless of their
    positions in the message, and each is followed by a newline. The original model was trained with
    ``<image>\\n`` first, and its demo moves later images to the front.
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


def _render_llama_3(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """``<|start_header_id|>user<|end_header_id|>\\n\\n{question}<|eot_id|>`` for each message.

    As in Llama 3's own chat template, which the original uses, spaces around messages are removed.
    """

    def header(role: str) -> list[Segment]:
        start, end = SpecialToken("<|start_header_id|>"), SpecialToken("<|end_header_id|>")
        return [start, role, end, template.separator]

    segments: list[Segment] = [*header("system"), system.strip(), template.end] if system else []
    for turn in turns:
        images, text = _images(turn), _text(turn).rstrip()
        segments += [*header(turn.role), *images, text if images else text.lstrip(), template.end]
    return [*segments, *header("assistant")]


def _render_phi_3(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """``<|user|>\\n{question}<|end|>\\n`` for each message. Phi-3's tokenizer drops most of the newlines."""

    def message(role: str, *parts: Segment) -> list[Segment]:
        return [SpecialToken(f"<|{role}|>"), template.separator, *parts, template.end, template.separator]

    segments = message("system", system) if system else []
    for turn in turns:
        segments += message(turn.role, *_images(turn), _text(turn))
    return [*segments, SpecialToken("<|assistant|>"), template.separator]


def _render_plain(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """Images and texts without roles, each on a separate line, as in pretraining."""
    segments: list[Segment] = [system]
    for turn in turns:
        end = template.separator if turn.role == "user" else template.end
        segments += [*_images(turn), _text(turn), end]
    return segments


def _render_llava_hf(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """llava-hf's chat template: a space after every text, no ``</s>``, no default system message."""
    segments: list[Segment] = [f"{system} "] if system else []
    for turn in turns:
        segments.append(f"{template.user if turn.role == 'user' else template.assistant}: ")
        segments += _images(turn)
        segments += [f"{part} " for part in turn.parts if isinstance(part, str)]
    return [*segments, f"{template.assistant}:"]


def _render_paligemma(template: ConversationTemplate, system: str, turns: Sequence[Message]) -> list[Segment]:
    """All images, ``<bos>``, and each text on a separate line, as in transformers' processor.

    There are no roles, because the model was not trained with conversations.
    """
    images = [part for turn in turns for part in turn.parts if isinstance(part, ImageRef)]
    segments: list[Segment] = [*images, SpecialToken("<bos>")]
    if system:
        segments += [system, template.end]
    for turn in turns:
        segments += [_text(turn), template.end]
    return segments


_RENDERERS: dict[PromptFormat, Callable[[ConversationTemplate, str, Sequence[Message]], list[Segment]]] = {
    "colons": _render_colons,
    "inst": _render_inst,
    "chatml": _render_chatml,
    "llama_3": _render_llama_3,
    "phi_3": _render_phi_3,
    "plain": _render_plain,
    "llava_hf": _render_llava_hf,
    "paligemma": _render_paligemma,
}


def validate_messages(
    messages: Sequence[Message], *, is_continued: bool = False, must_alternate: bool = True
) -> int:
    """Validate the messages and return the index of the first turn: 1 after a system message, otherwise 0.

    If ``must_alternate`` is true, user and assistant messages must alternate, starting with a user message.
    The last message must be an assistant message if ``is_continued`` is true, and must not be one otherwise.
    Only user messages may contain images. Raises PromptError.
    """
    if not messages:
        raise PromptError(
            ErrorCode.INVALID_REQUEST, "The list of messages is empty. Send at least one user message."
        )
    first_turn = 1 if messages[0].role == "system" else 0
    for index, message in enumerate(messages):
        if must_alternate and index >= first_turn:
            _validate_role(messages, index, first_turn)
        if message.role != "user" and any(isinstance(part, ImageRef) for part in message.parts):
            raise PromptError(
                ErrorCode.INVALID_REQUEST,
                f"messages[{index}] has the role {message.role!r} and contains an image. Only user messages "
                "may contain images.",
            )
    if len(messages) == first_turn:
        raise PromptError(
            ErrorCode.INVALID_REQUEST, "The messages do not contain a user message. Send at least one."
        )
    if is_continued and messages[-1].role != "assistant":
        raise PromptError(
            ErrorCode.INVALID_REQUEST,
            "The last message is not an assistant message, so there is no response to continue.",
        )
    if messages[-1].role == "assistant" and not is_continued:
        raise PromptError(
            ErrorCode.INVALID_REQUEST,
            "The last message is an assistant message. End the messages with a user message.",
        )
    return first_turn


def _validate_role(messages: Sequence[Message], index: int, first_turn: int) -> None:
    role = messages[index].role
    expected = "user" if (index - first_turn) % 2 == 0 else "assistant"
    if role == "system":
        raise PromptError(
            ErrorCode.INVALID_REQUEST,
            f"messages[{index}] is a system message. Only the first message may be a system message.",
        )
    if role != expected:
        raise PromptError(
            ErrorCode.INVALID_REQUEST,
            f"messages[{index}] has the role {role!r} instead of {expected!r}. User and assistant messages "
            "must alternate, starting with a user message. Merge consecutive messages of the same role.",
        )


def _tagged_images(turn: Message) -> list[Segment]:
    images = (part for part in turn.parts if isinstance(part, ImageRef))
    return [segment for image in images for segment in ("<Image>", image, "</Image>")]


def _images(turn: Message) -> list[Segment]:
    return [segment for part in turn.parts if isinstance(part, ImageRef) for segment in (part, "\n")]


def _text(message: Message) -> str:
    return "\n".join(part for part in message.parts if isinstance(part, str))
