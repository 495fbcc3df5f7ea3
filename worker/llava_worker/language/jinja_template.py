"""A checkpoint's own chat template, rendered by transformers in a `TemplateProcess`.

Before rendering, each character in the messages that could begin a special token is replaced by a
placeholder: a private-use character that neither the messages nor the template contain. After rendering, the
original characters are restored. Every special token in the output therefore begins in the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import ImageRef, Message

from llava_worker.language.prompt_formats import (
    ChatTemplateError,
    PromptError,
    Segment,
    SpecialToken,
    validate_messages,
)
from llava_worker.language.template_process import RenderingError, TemplateProcess

__all__ = ["JinjaChatTemplate"]

# CJK ideographs of extension B, which are rare. They are letters without case, so Python and Jinja print
# them unchanged, for example as part of a list.
_RARE_CHARACTERS = range(0x20000, 0x2A6D7)


class JinjaChatTemplate:
    """A template that renders like transformers' ``apply_chat_template`` with ``add_generation_prompt``.

    The template, not this class, decides in which order roles may occur.
    """

    name = "checkpoint"
    is_hf_style = True
    has_bos = True
    stop: tuple[str, ...] = ()

    def __init__(
        self,
        source: str,
        *,
        process: TemplateProcess,
        special_tokens: Iterable[str],
        variables: Mapping[str, str],
        image_token: str = "<image>",
    ) -> None:
        """Compile the template. Raises ChatTemplateError.

        Each of the ``special_tokens`` in the output becomes a separate segment. ``variables`` are available
        to the template, in addition to those that transformers defines.
        """
        tokens = {*special_tokens, image_token}
        self._special_tokens = re.compile(
            "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
        )
        self._first_characters = sorted({token[0] for token in tokens})
        self._source = source
        self._process = process
        self._variables = dict(variables)
        self.definition = repr((source, sorted(tokens), sorted(self._variables.items())))
        self._image_token = image_token
        try:
            self._has_list_content = process.compile(source)
        except RenderingError as error:
            raise ChatTemplateError(f"The model's chat template {error}") from error

    def render(self, messages: Sequence[Message], *, is_continued: bool = False) -> list[Segment]:
        """Implement ``PromptTemplate.render``.

        Raises PromptError if the template rejects the messages or exceeds a limit of the process.
        """
        validate_messages(messages, is_continued=is_continued, must_alternate=False)
        placeholders = self._choose_placeholders(messages)
        masks = str.maketrans(placeholders)
        restored = str.maketrans({placeholder: character for character, placeholder in placeholders.items()})
        turns = [
            {"role": message.role, "content": self._content(message.parts, masks)} for message in messages
        ]
        try:
            text = self._process.render(
                self._source, turns, variables=self._variables, is_continued=is_continued
            )
        except RenderingError as error:
            message = str(error).translate(restored)
            raise PromptError(error.code, f"The model's chat template {message}") from error
        images = [part for message in messages for part in message.parts if isinstance(part, ImageRef)]
        return self._split(text, images, restored)

    def _choose_placeholders(self, messages: Sequence[Message]) -> dict[str, str]:
        """Return the placeholder of each character that can begin a special token."""
        texts = [part for message in messages for part in message.parts if isinstance(part, str)]
        used = set(self._source).union(*texts)
        unused = (character for character in map(chr, _RARE_CHARACTERS) if character not in used)
        placeholders = dict(zip(self._first_characters, unused, strict=False))
        if len(placeholders) < len(self._first_characters):
            num_characters = len(_RARE_CHARACTERS)
            raise PromptError(
                ErrorCode.INVALID_REQUEST,
                f"The messages contain nearly all of the {num_characters} CJK ideographs of extension B "
                "(U+20000 and above), of which the chat template needs a few. Remove some.",
            )
        return placeholders

    def _content(self, parts: Sequence[str | ImageRef], masks: dict[int, str]) -> Any:
        """Return the parts of a message as a list or, as in vLLM, as a string that begins with the images."""
        if self._has_list_content:
            return [
                {"type": "text", "text": part.translate(masks)}
                if isinstance(part, str)
                else {"type": "image"}
                for part in parts
            ]
        images = [self._image_token for part in parts if isinstance(part, ImageRef)]
        texts = [part.translate(masks) for part in parts if isinstance(part, str)]
        return "\n".join([*images, "\n".join(texts)])

    def _split(self, text: str, images: list[ImageRef], restored: dict[int, str]) -> list[Segment]:
        """Split the text at special tokens, and replace image tokens with the images, in order."""
        segments: list[Segment] = []
        num_images, remaining = len(images), iter(images)
        end = 0
        for match in self._special_tokens.finditer(text):
            segments.append(text[end : match.start()].translate(restored))
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
        segments.append(text[end:].translate(restored))
        return [segment for segment in segments if segment]
