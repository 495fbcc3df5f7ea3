"""Random chat messages in any order, and the texts and images that they contain."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from llava_server.api.chat.conversation import to_conversation
from llava_server.api.fields.messages import ChatMessage
from llava_wire.messages.job import ImageRef, Message
from pydantic import TypeAdapter

__all__ = ["MESSAGES", "RandomMessages", "image", "parsed", "random_messages"]

MESSAGES: TypeAdapter[list[ChatMessage]] = TypeAdapter(list[ChatMessage])
_ROLES = ["system", "developer", "user", "assistant", "tool", "function"]
# One letter per part: text, empty text, image, refusal, reasoning.
_CONTENTS = {role: "xe" for role in _ROLES} | {"user": "xei", "tool": "xei", "assistant": "xern"}


def parsed(*messages: Any) -> list[ChatMessage]:
    return MESSAGES.validate_python(list(messages))


def image(number: int) -> ImageRef:
    return ImageRef(digest=f"image{number}", num_tiles=1, side=14, width=5, height=4)


@dataclass(frozen=True)
class RandomMessages:
    """Messages, and the names of their texts, calls and images in the order in which the model sees them."""

    messages: list[ChatMessage]
    names: list[str]
    is_continued: bool

    def conversation(self, *, tools: str = "") -> tuple[Message, ...]:
        images = [image(int(name.removeprefix("image"))) for name in self.names if name.startswith("image")]
        return to_conversation(self.messages, images, tools=tools, is_continued=self.is_continued)


class _Builder:
    """Builds messages in which each text and image has a different name, and records the names."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers = itertools.count()

    def _name(self, kind: str) -> str:
        self.names.append(f"{kind}{next(self._numbers)}")
        return self.names[-1]

    def message(self, role: str, letters: str | None, has_call: bool) -> dict[str, Any]:
        letters_in_order = letters or ""
        if role in ("tool", "function"):  # the images follow the text
            letters_in_order = "".join(sorted(letters_in_order, key=lambda letter: letter == "i"))
        content: Any = letters if not letters else [self._part(letter) for letter in letters_in_order]
        message: dict[str, Any] = {"role": role, "content": content}
        message |= {"tool_call_id": "c"} if role == "tool" else {"name": "f"} if role == "function" else {}
        if role == "assistant" and has_call:
            function = {"name": self._name("call"), "arguments": "{}"}
            message["tool_calls"] = [{"id": "c", "function": function}]
        return message

    def _part(self, letter: str) -> dict[str, Any]:
        if letter == "i":
            self._name("image")
            return {"type": "image_url", "image_url": {"url": "data:"}}
        if letter == "r":
            return {"type": "refusal", "refusal": self._name("text")}
        if letter == "n":
            return {"type": "thinking", "thinking": "hidden"}
        return {"type": "text", "text": "" if letter == "e" else self._name("text")}


@st.composite
def random_messages(draw: st.DrawFn) -> RandomMessages:
    """Return a strategy for messages whose last one is sometimes continued."""

    def content(role: str) -> st.SearchStrategy[str | None]:
        return st.none() | st.text(_CONTENTS[role], max_size=4)

    builder = _Builder()
    roles = draw(st.lists(st.sampled_from(_ROLES), min_size=1, max_size=8))
    dicts = [builder.message(role, draw(content(role)), draw(st.booleans())) for role in roles]
    messages = MESSAGES.validate_python(dicts)
    is_continued = roles[-1] == "assistant" and draw(st.booleans())
    return RandomMessages(messages, builder.names, is_continued)
