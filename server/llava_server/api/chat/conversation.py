"""Conversion of a request's messages to a conversation that every chat template can render.

APIs allow messages in any order, but chat templates do not. A conversation consists of an optional system
message, followed by user and assistant turns that alternate. The first turn is a user turn. The last turn is
a user turn too, unless the model continues an assistant message. docs/reference/api.md lists the position of
each message.

No text and no image is dropped, and their order does not change. Later system messages therefore remain where
they are: moving their text into the system prompt would change what they refer to, and every new one would
invalidate the cached prompt from its first token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llava_wire.messages.job import ImageRef, Message, Role

from llava_server.api.fields.messages import (
    AssistantMessage,
    ChatMessage,
    FilePart,
    FunctionMessage,
    ImagePart,
    SystemMessage,
    ToolMessage,
)
from llava_server.api.tools.prompt import calls_text, result_text

__all__ = ["ImageSource", "image_sources", "to_conversation"]


class ImageSource(NamedTuple):
    """An image in a request: the field that contains it, its URL, and whether to encode it in low detail.

    The image is read from a stored file if ``file_id`` is not empty.
    """

    param: str
    url: str
    is_low_detail: bool
    file_id: str = ""


def image_sources(messages: Sequence[ChatMessage]) -> list[ImageSource]:
    """Return the images in the messages in reading order."""
    return [
        _image_source(part, f"messages[{m}].content[{p}]")
        for m, message in enumerate(messages)
        for p, part in enumerate(message.parts)
        if isinstance(part, ImagePart | FilePart)
    ]


def _image_source(part: ImagePart | FilePart, path: str) -> ImageSource:
    if isinstance(part, ImagePart):
        url = part.image_url
        return ImageSource(part.param or f"{path}.image_url.url", url.url, url.detail == "low")
    file, is_low_detail = part.file, part.file.detail == "low"
    if file.file_id is not None:
        return ImageSource(part.param or f"{path}.file.file_id", "", is_low_detail, file.file_id)
    return ImageSource(part.param or f"{path}.file.file_data", file.file_data or "", is_low_detail)


def to_conversation(
    messages: Sequence[ChatMessage],
    images: Iterable[ImageRef],
    *,
    tools: str = "",
    is_continued: bool = False,
) -> tuple[Message, ...]:
    """Return the conversation. ``images`` must be in the same order as ``image_sources``.

    The description of the callable functions, ``tools``, is added to the system message. If ``is_continued``
    is true, the last message is an assistant message, which the model continues.
    """
    remaining = iter(images)
    turns: list[_Turn] = []
    for message in messages:
        parts = [
            next(remaining) if isinstance(part, ImagePart | FilePart) else part for part in message.parts
        ]
        is_leading = not turns or turns[-1].role == "system"
        if isinstance(message, ToolMessage | FunctionMessage):
            result = result_text("\n".join(part for part in parts if isinstance(part, str)))
            result_images = [part for part in parts if isinstance(part, ImageRef)]
            _turn(turns, "user").add([result, *result_images], is_plain=False)
        elif isinstance(message, AssistantMessage):
            calls = [calls_text(message.calls)] if message.calls else []
            _turn(turns, "assistant").add(_single_text([*parts, *calls]))
        elif isinstance(message, SystemMessage) and is_leading:
            _turn(turns, "system").add(_single_text(parts))
        else:
            _turn(turns, "user").add(parts)
    if tools:
        if turns[0].role != "system":
            turns.insert(0, _Turn("system"))
        turns[0].add([tools])
    _complete(turns, is_continued=is_continued)
    return tuple(Message(turn.role, tuple(turn.parts) or ("",)) for turn in turns)


@dataclass
class _Turn:
    """The merged messages of one role.

    If ``is_open`` is true, the last part is plain text, to which the text of the next message is joined.
    """

    role: Role
    parts: list[str | ImageRef] = field(default_factory=list)
    is_open: bool = False

    def add(self, parts: Sequence[str | ImageRef], *, is_plain: bool = True) -> None:
        """Add the parts of a message.

        If ``is_plain`` is true, text that follows plain text is joined to it by a line break, because some
        templates insert nothing between parts. Otherwise, the first part is text in tags.
        """
        if not parts:
            return
        if is_plain and self.is_open and isinstance(parts[0], str):
            before = str(self.parts.pop())
            parts = ["\n".join(filter(None, (before, parts[0]))), *parts[1:]]
        self.parts += parts
        self.is_open = is_plain and isinstance(parts[-1], str)


def _single_text(parts: Sequence[str | ImageRef]) -> list[str]:
    """Return texts as a single part, because some templates read only the first part of a message.

    Only user messages can contain images.
    """
    return ["\n".join(part for part in parts if isinstance(part, str))] if parts else []


def _turn(turns: list[_Turn], role: Role) -> _Turn:
    """Return the last turn if it has this role, otherwise a new turn."""
    if not turns or turns[-1].role != role:
        turns.append(_Turn(role))
    return turns[-1]


def _complete(turns: list[_Turn], *, is_continued: bool) -> None:
    """Insert an empty user turn before a leading assistant turn and after a trailing one."""
    first = 1 if turns[0].role == "system" else 0
    if len(turns) == first or turns[first].role == "assistant":
        turns.insert(first, _Turn("user"))
    if turns[-1].role == "assistant" and not is_continued:
        turns.append(_Turn("user"))
