"""A checkpoint's own chat template: Jinja from strangers, run in a sandbox that changes and reaches nothing.

What a user wrote goes through the template in disguise: characters with which special tokens begin are
replaced by marks that nobody can guess, so a special token in the output can only be the template's own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import ImageRef, Message

from llava_worker.language.prompt_formats import Piece, PromptError, Special, check_turns

__all__ = ["ChatTemplate", "ChatTemplateError", "has_chat_template", "read_chat_template"]


class ChatTemplateError(Exception):
    """The model's folder has no chat template, or one that cannot be read."""


class ChatTemplate:
    """Renders messages as transformers' ``apply_chat_template`` does, with an answer to be generated."""

    name = "checkpoint"
    is_whole = True
    has_bos = True
    stop: tuple[str, ...] = ()

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Iterable[str],
        bos_token: str = "",
        eos_token: str = "",
        image_token: str = "<image>",
    ) -> None:
        """``special_tokens`` are cut out of what the template gives. Raises ChatTemplateError."""
        tokens = {*special_tokens, image_token}
        self._tokens = re.compile(
            "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
        )
        self._variables = {"bos_token": bos_token, "eos_token": eos_token}
        self._image_token = image_token
        nonce = secrets.token_hex(8)
        self._marks = {token[0]: f"\ue000{nonce}{ord(token[0]):x}\ue001" for token in tokens}
        self._end = f"\ue000{nonce}end\ue001"
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"the model's chat template is broken: {error}") from error

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Piece]:
        """Raises PromptError, also where the template itself objects to the conversation."""
        check_turns(messages, is_continued=is_continued)
        turns = [self._as_dict(message) for message in messages]
        if is_continued:  # what the template puts behind the answer will be cut off
            turns[-1]["content"][-1]["text"] += self._end
        try:
            text = self._template.render(
                messages=turns, add_generation_prompt=not is_continued, **self._variables
            )
        except Exception as error:  # foreign code may raise anything; the refusal is the answer
            raise _refused(f"the model's chat template does not take this conversation: {error}") from error
        if is_continued and self._end not in text:
            raise _refused("the model's chat template changes answers, so none of them can be continued")
        text = text.partition(self._end)[0]
        images = [part for message in messages for part in message.parts if isinstance(part, ImageRef)]
        return self._cut(text, images)

    def _as_dict(self, message: Message) -> dict[str, Any]:
        return {"role": message.role, "content": [self._as_part(part) for part in message.parts]}

    def _as_part(self, part: str | ImageRef) -> dict[str, str]:
        if isinstance(part, ImageRef):
            return {"type": "image"}
        return {"type": "text", "text": "".join(self._marks.get(character, character) for character in part)}

    def _cut(self, text: str, images: list[ImageRef]) -> list[Piece]:
        """The text at its special tokens, the pictures at theirs."""
        pieces: list[Piece] = []
        waiting = iter(images)
        end = 0
        for token in self._tokens.finditer(text):
            pieces.append(self._undisguise(text[end : token.start()]))
            end = token.end()
            if token[0] != self._image_token:
                pieces.append(Special(token[0]))
            elif (image := next(waiting, None)) is not None:
                pieces.append(image)
            else:
                raise _refused("the model's chat template shows more pictures than there are")
        if next(waiting, None) is not None:
            raise _refused(f"the model's chat template does not show all of the {len(images)} pictures")
        pieces.append(self._undisguise(text[end:]))
        return [piece for piece in pieces if piece]

    def _undisguise(self, text: str) -> str:
        for character, mark in self._marks.items():
            text = text.replace(mark, character)
        return text


class _Generation(Extension):
    """``{% generation %}``, with which transformers' templates mark answers; it changes no text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def has_chat_template(folder: Path) -> bool:
    return _find_source(folder) is not None


def read_chat_template(folder: Path) -> str:
    """The template's source from where transformers looks for it. Raises ChatTemplateError."""
    source = _find_source(folder)
    if source is None:
        raise ChatTemplateError(f"{folder} has no chat template: choose a conversation by its name")
    return source


def _find_source(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        template = json.loads(path.read_text("utf-8")).get("chat_template") if path.is_file() else None
        if isinstance(template, list):  # several, by name
            template = {item["name"]: item["template"] for item in template}.get("default")
        if isinstance(template, str):
            return template
    return None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _object
    return environment


def _object(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise TemplateError(message)


def _refused(message: str) -> PromptError:
    return PromptError(ErrorCode.INVALID_REQUEST, message)
