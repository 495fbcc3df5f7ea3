"""Messages to a prompt: token ids, and where in them the pictures stand.

The original's rules: one beginning-of-sequence id in all, and each text between pictures and special tokens
is tokenized alone, so each begins as a text of its own ("\\n" after a picture becomes ``▁ <0x0A>``).
Templates that follow transformers instead have their texts tokenized as parts of one.
A picture takes as many image ids as it will have features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llava_wire.messages.event import ErrorCode
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef, Job, Message

from llava_worker.engine import ImageSpan
from llava_worker.language.prompt_formats import Piece, PromptError, Special, Template
from llava_worker.language.tokenizer import TextTokenizer
from llava_worker.model.config.image_grid import ImageLayout

__all__ = ["Prompt", "PromptBuilder", "PromptError"]

_PROBE = (Message("user", ("a",)), Message("assistant", ("b",)), Message("user", ("c",)))


@dataclass
class Prompt:
    """``images`` in the order in which they stand in ``token_ids``."""

    token_ids: list[int] = field(default_factory=list)
    images: list[ImageSpan] = field(default_factory=list)


class PromptBuilder:
    """One model's way from messages to ids. Has no state of its own; any thread may call it."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        template: Template,
        *,
        image_spec: ImageSpec,
        context_length: int,
        has_image_marks: bool = False,
    ) -> None:
        """``has_image_marks``: the model was trained with ``<im_start>`` and ``<im_end>`` around pictures.

        Raises TokenizerError if the vocabulary lacks a special token that these need.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._pictures = ImageLayout(
            image_spec.side, image_spec.tokens_per_tile, fit=image_spec.fit, grid=image_spec.grid
        )
        self._context_length = context_length
        marks = ["<im_start>", "<im_end>"] if has_image_marks else []
        self._marks = [[tokenizer.special_id(mark)] for mark in marks] or [[], []]
        for piece in template.render(_PROBE):
            if isinstance(piece, Special):
                tokenizer.special_id(piece.token)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts with which this template's answers end, besides the end token."""
        return self._template.stop

    def build_for(self, job: Job) -> Prompt:
        """The job's prompt. Raises PromptError where the model cannot take it or has no room to answer."""
        if job.prompt_ids:
            prompt = Prompt(list(job.prompt_ids))
            if self._tokenizer.image_id in job.prompt_ids and job.is_computed:
                raise PromptError(
                    ErrorCode.INVALID_REQUEST,
                    f"the prompt has token {self._tokenizer.image_id}, which stands for a picture: "
                    "send pictures in a chat",
                )
        elif job.form == "raw" and job.images:
            span = self._span(job.images[0], start=0)
            prompt = Prompt([self._tokenizer.image_id] * span.length, [span])
        elif job.form == "raw":
            prompt = self._encoded(["".join(part for part in job.messages[0].parts if isinstance(part, str))])
        else:
            prompt = self._encoded(self._template.render(job.messages, is_continued=job.form == "continued"))
        if job.is_computed:
            self._check_length(prompt)
        return prompt

    def build(self, messages: Sequence[Message]) -> Prompt:
        """The prompt of a chat. Raises PromptError like ``build_for``."""
        prompt = self._encoded(self._template.render(messages))
        self._check_length(prompt)
        return prompt

    def _encoded(self, parts: Iterable[Piece]) -> Prompt:
        pieces = _join_texts(parts)
        prompt = Prompt(self._beginning(pieces))
        for index, piece in enumerate(pieces):
            if isinstance(piece, str):
                prompt.token_ids += self._encode(piece, is_first=index == 0)
            elif isinstance(piece, Special):
                prompt.token_ids.append(self._tokenizer.special_id(piece.token))
            else:
                self._append_picture(prompt, piece)
        return prompt

    def _beginning(self, pieces: Sequence[Piece]) -> list[int]:
        bos = self._tokenizer.bos_id
        if bos is None or not self._template.has_bos:
            return []
        if self._template.is_whole:
            first = pieces[0] if pieces else ""
            is_there = isinstance(first, Special) and self._tokenizer.special_id(first.token) == bos
            return [bos] if self._tokenizer.adds_bos and not is_there else []
        return [bos]

    def _encode(self, text: str, *, is_first: bool) -> list[int]:
        if self._template.is_whole:
            return self._tokenizer.encode_part(text, is_first=is_first)
        return self._tokenizer.encode(text)

    def _append_picture(self, prompt: Prompt, image: ImageRef) -> None:
        before, after = self._marks
        prompt.token_ids += before
        prompt.images.append(self._span(image, start=len(prompt.token_ids)))
        prompt.token_ids += [self._tokenizer.image_id] * prompt.images[-1].length + after

    def _span(self, image: ImageRef, *, start: int) -> ImageSpan:
        """Raises PromptError for a picture that was not fitted for this model."""
        # A grid has at least one tile besides the base view: one tile is a picture with low detail.
        has_grid = self._pictures.has_grid and image.num_tiles > 1
        plan = self._pictures.plan(image.width, image.height) if has_grid else self._pictures.plan(0, 0)
        if (image.side, image.num_tiles) != (self._pictures.side, plan.num_tiles):
            raise PromptError(
                ErrorCode.INTERNAL_ERROR,
                f"a picture was fitted to {image.num_tiles} tiles of {image.side} pixels, the model takes "
                f"{plan.num_tiles} of {self._pictures.side}: two workers of this model disagree about its "
                "pictures",
            )
        # Only where features depend on the size: else equal pixels are equal features, whatever their size.
        width, height = (image.width, image.height) if has_grid else (0, 0)
        return ImageSpan(start=start, length=plan.num_tokens, digest=image.digest, width=width, height=height)

    def _check_length(self, prompt: Prompt) -> None:
        num_tokens, num_images = len(prompt.token_ids), len(prompt.images)
        if num_tokens < self._context_length:
            return
        pictures = f" with {num_images} image{'s' * (num_images > 1)}" if num_images else ""
        way_out = "shorten the text or send fewer images" if num_images else "shorten the text"
        raise PromptError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"prompt has {num_tokens} tokens{pictures}; "
            f"the model takes {self._context_length}, answer included: {way_out}",
        )


def _join_texts(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring texts as one, because a tokenizer sees the seam."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
