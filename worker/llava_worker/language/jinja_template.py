"""A checkpoint's own chat template: untrusted Jinja code that runs in a sandbox without side effects.

Before rendering, each character in the user's text that could begin a special token is replaced by a random
placeholder. After rendering, the original characters are restored. Every special token in the output
therefore comes from the template.
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

from llava_worker.language.prompt_formats import (
    ChatTemplateError,
    PromptError,
    Segment,
    SpecialToken,
    validate_messages,
)

__all__ = ["JinjaChatTemplate", "has_chat_template", "read_chat_template"]


class JinjaChatTemplate:
    """A template that renders like transformers' ``apply_chat_template`` with ``add_generation_prompt``."""

    name = "checkpoint"
    is_hf_style = True
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
        """Compile the template. Raises ChatTemplateError.

        Each of the ``special_tokens`` in the output becomes a separate segment.
        """
        tokens = {*special_tokens, image_token}
        self._special_tokens = re.compile(
            "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
        )
        self._variables = {"bos_token": bos_token, "eos_token": eos_token}
        self.definition = repr((source, sorted(tokens), self._variables))
        self._image_token = image_token
        nonce = secrets.token_hex(8)
        self._placeholders = {token[0]: f"\ue000{nonce}{ord(token[0]):x}\ue001" for token in tokens}
        self._end_marker = f"\ue000{nonce}end\ue001"
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"The model's chat template is invalid: {error}") from error

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Segment]:
        """Implement ``PromptTemplate.render``. Raises PromptError if the template rejects the messages."""
        validate_messages(messages, is_continued=is_continued)
        turns = [self._as_dict(message) for message in messages]
        if is_continued:  # any text that the template appends to the last message is removed below
            turns[-1]["content"][-1]["text"] += self._end_marker
        try:
            text = self._template.render(
                messages=turns, add_generation_prompt=not is_continued, **self._variables
            )
        except Exception as error:  # untrusted code can raise any type of exception
            raise PromptError(
                ErrorCode.INVALID_REQUEST, f"The model's chat template rejected the messages: {error}"
            ) from error
        if is_continued and self._end_marker not in text:
            raise PromptError(
                ErrorCode.INVALID_REQUEST,
                "The model's chat template modifies assistant messages, so a partial response cannot be "
                "continued. End with a user message.",
            )
        text = text.partition(self._end_marker)[0]
        images = [part for message in messages for part in message.parts if isinstance(part, ImageRef)]
        return self._split(text, images)

    def _as_dict(self, message: Message) -> dict[str, Any]:
        return {"role": message.role, "content": [self._as_part(part) for part in message.parts]}

    def _as_part(self, part: str | ImageRef) -> dict[str, str]:
        if isinstance(part, ImageRef):
            return {"type": "image"}
        return {
            "type": "text",
            "text": "".join(self._placeholders.get(character, character) for character in part),
        }

    def _split(self, text: str, images: list[ImageRef]) -> list[Segment]:
        """Split the text at special tokens, and replace image tokens with the images, in order."""
        segments: list[Segment] = []
        num_images, remaining = len(images), iter(images)
        end = 0
        for match in self._special_tokens.finditer(text):
            segments.append(self._restore(text[end : match.start()]))
            end = match.end()
            if match[0] != self._image_token:
                segments.append(SpecialToken(match[0]))
            elif (image := next(remaining, None)) is not None:
                segments.append(image)
            else:
                raise PromptError(
                    ErrorCode.INVALID_REQUEST,
                    f"The model's chat template inserts more images than the {num_images} in the request.",
                )
        if next(remaining, None) is not None:
            raise PromptError(
                ErrorCode.INVALID_REQUEST,
                f"The model's chat template does not insert all of the {num_images} images in the request.",
            )
        segments.append(self._restore(text[end:]))
        return [segment for segment in segments if segment]

    def _restore(self, text: str) -> str:
        """Replace the placeholders with the original characters."""
        for character, placeholder in self._placeholders.items():
            text = text.replace(placeholder, character)
        return text


class _Generation(Extension):
    """The ``{% generation %}`` tag, which marks responses in transformers templates.

    It has no effect here.
    """

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def has_chat_template(folder: Path) -> bool:
    return _find_source(folder) is not None


def read_chat_template(folder: Path) -> str:
    """Read the template's source from the same files as transformers. Raises ChatTemplateError."""
    source = _find_source(folder)
    if source is None:
        raise ChatTemplateError(
            f"No chat template exists in {folder}. Select a built-in template with --conversation."
        )
    return source


def _find_source(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        template = json.loads(path.read_text("utf-8")).get("chat_template") if path.is_file() else None
        if isinstance(template, list):  # a list of named templates
            template = {item["name"]: item["template"] for item in template}.get("default")
        if isinstance(template, str):
            return template
    return None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _raise_exception(message: str) -> NoReturn:
    """Reject the messages. Templates call this function as ``raise_exception``."""
    raise TemplateError(message)
