"""Prompt construction: converts messages to token IDs and image positions.

The rules are the same as in the original LLaVA. The prompt starts with one beginning-of-sequence token. It is
split at the images, and each part is tokenized independently, so a newline after an image becomes ``▁``,
``<0x0A>``. For templates in the style of transformers, the prompt is tokenized as a single text. An image is
represented by the tokens that an `ImageExpander` returns, by default one image token per feature vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import ImageRef, Job, Message

from llava_worker.engine import ImageSpan
from llava_worker.language.bad_words import bad_word_ids
from llava_worker.language.detokenizer import detokenize
from llava_worker.language.image_tokens import ImageExpander, ImageTokens
from llava_worker.language.prompt_formats import PromptError, PromptTemplate, Segment, SpecialToken
from llava_worker.language.tokenizer import Tokenizer

__all__ = ["Prompt", "PromptBuilder", "PromptError"]

_IMAGE_MARKS = (SpecialToken("<im_start>"), SpecialToken("<im_end>"))
_SAMPLE_CHAT = (Message("user", ("a",)), Message("assistant", ("b",)), Message("user", ("c",)))


@dataclass
class Prompt:
    """A prompt. ``images`` are ordered by their positions in ``token_ids``.

    ``bad_words`` are the token sequences that the output must not contain. ``text`` is the text of the
    tokens, which is set only for "detokenize" jobs.
    """

    token_ids: list[int] = field(default_factory=list)
    images: list[ImageSpan] = field(default_factory=list)
    bad_words: tuple[tuple[int, ...], ...] = ()
    text: str = ""

    def truncated(self, max_tokens: int, *, num_kept: int) -> Prompt:
        """Return the prompt without the tokens and images at its start that exceed ``max_tokens``.

        The first ``num_kept`` tokens are kept. Raises PromptError if the truncated prompt would start inside
        an image, because the model cannot process a part of one.
        """
        num_dropped = len(self.token_ids) - max_tokens
        if num_dropped <= 0:
            return self
        start = num_kept + num_dropped  # the first token after the dropped ones
        for number, image in enumerate(self.images, start=1):
            if image.start < start < image.end:
                with_image = len(self.token_ids) - image.start + num_kept
                without_image = len(self.token_ids) - image.end + num_kept
                raise PromptError(
                    ErrorCode.INVALID_REQUEST,
                    f"truncate_prompt_tokens would keep {max_tokens} of {len(self.token_ids)} prompt tokens "
                    f"and cut off part of image {number}. Keep at least {with_image} tokens to include the "
                    f"image, or at most {without_image} to drop it.",
                    "truncate_prompt_tokens",
                )
        kept = [image for image in self.images if image.start >= start]
        return replace(
            self,
            token_ids=self.token_ids[:num_kept] + self.token_ids[start:],
            images=[replace(image, start=image.start - num_dropped) for image in kept],
        )


class PromptBuilder:
    """Builds prompts for one model. Immutable and thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        *,
        expander: ImageExpander,
        context_length: int,
        has_image_marks: bool = False,
    ) -> None:
        """Create a builder. Raises TokenizerError if the vocabulary lacks a required special token.

        ``expander`` determines the tokens of images. ``has_image_marks`` is true if the model was trained
        with ``<im_start>`` and ``<im_end>`` around images.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._expander = expander
        self._context_length = context_length
        self._image_marks = _IMAGE_MARKS if has_image_marks else ()
        for segment in [*self._image_marks, *template.render(_SAMPLE_CHAT)]:
            if isinstance(segment, SpecialToken):
                tokenizer.special_id(segment.token)

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a response, in addition to the end token."""
        return self._template.stop

    def build(self, job: Job) -> Prompt:
        """Build a job's prompt.

        Raises PromptError if the model cannot process the prompt or the prompt leaves no room for a response.
        """
        if job.prompt_ids:
            prompt = Prompt(list(job.prompt_ids))
            image_token_id = self._tokenizer.image_token_id
            if image_token_id in job.prompt_ids and job.needs_model:
                raise PromptError(
                    ErrorCode.INVALID_REQUEST,
                    f"The prompt contains token {image_token_id}, which is reserved for images. Send images "
                    "in a chat request.",
                )
        elif job.form == "raw" and job.images:
            (tokens,) = self._expander.expand(job.images[:1])
            prompt = Prompt(list(tokens.token_ids), [_image_span(job.images[0], tokens, start=0)])
        else:
            segments = self._segments(job)
            if job.needs_model and job.truncate_prompt_tokens is None:
                self._check_num_bytes(segments)
            prompt = self._encode(segments)
        if job.truncate_prompt_tokens is not None:
            prompt = self._truncate(prompt, job)
        if job.needs_model:
            self._check_length(prompt)
        if job.task == "detokenize":
            prompt.text = detokenize(self._tokenizer, prompt.token_ids)
        if job.sampling.bad_words:
            prompt.bad_words = bad_word_ids(self._tokenizer, job.sampling.bad_words)
        return prompt

    def _segments(self, job: Job) -> list[Segment]:
        if job.form == "raw":
            return ["".join(part for part in job.messages[0].parts if isinstance(part, str))]
        return list(self._template.render(job.messages, is_continued=job.form == "continued"))

    def _truncate(self, prompt: Prompt, job: Job) -> Prompt:
        """Truncate the prompt as requested.

        A beginning-of-sequence token that is not part of the request is kept, because the models were trained
        with it.
        """
        max_tokens = job.truncate_prompt_tokens or 0
        if max_tokens < 0:  # all tokens that leave room for the output, or for one token if it has no limit
            max_output = job.sampling.max_tokens or 1
            room = max_output if max_output < self._context_length else 1
            max_tokens = self._context_length - room
        has_bos = not job.prompt_ids and prompt.token_ids[:1] == [self._tokenizer.bos_token_id]
        return prompt.truncated(max_tokens, num_kept=int(has_bos))

    def build_chat(self, messages: Sequence[Message]) -> Prompt:
        """Build the prompt for a chat. Raises PromptError under the same conditions as ``build``."""
        prompt = self._encode(self._template.render(messages))
        self._check_length(prompt)
        return prompt

    def _encode(self, segments: Iterable[Segment]) -> Prompt:
        segments = list(segments)
        expanded = self._expander.expand([each for each in segments if isinstance(each, ImageRef)])
        segments = _join_texts(self._mark_images(_surround_images(segments, expanded)))
        remaining = iter(expanded)
        prompt = Prompt(self._bos(segments))
        previous: Segment | None = None
        for segment in segments:
            is_first = previous is None or (isinstance(previous, ImageRef) and not self._template.is_hf_style)
            if isinstance(segment, ImageRef):
                tokens = next(remaining)
                prompt.images.append(_image_span(segment, tokens, start=len(prompt.token_ids)))
                prompt.token_ids += tokens.token_ids
            else:
                if isinstance(segment, str) and self._includes_white_space(previous):
                    segment = segment.lstrip()
                prompt.token_ids += self._encode_part(segment, is_first=is_first)
            previous = segment
        return prompt

    def _mark_images(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """Enclose each image in the marks that the model was trained with."""
        for segment in segments:
            if self._image_marks and isinstance(segment, ImageRef):
                start, end = self._image_marks
                yield from (start, segment, end)
            else:
                yield segment

    def _includes_white_space(self, previous: Segment | None) -> bool:
        return isinstance(previous, SpecialToken) and self._tokenizer.includes_white_space(previous.token)

    def _encode_part(self, segment: str | SpecialToken, *, is_first: bool) -> list[int]:
        if isinstance(segment, SpecialToken):
            if self._template.is_hf_style:
                return [self._tokenizer.special_id(segment.token)]
            return self._tokenizer.encode_special(segment.token, is_first=is_first)
        if self._template.is_hf_style:
            return self._tokenizer.encode_segment(segment, is_first=is_first)
        return self._tokenizer.encode(segment, is_first=is_first)

    def _bos(self, segments: Sequence[Segment]) -> list[int]:
        """Return the beginning-of-sequence token to prepend, or [] if it is unused or already present."""
        bos = self._tokenizer.bos_token_id
        if bos is None or not self._tokenizer.adds_bos or not self._template.has_bos:
            return []
        first = segments[0] if segments and self._template.is_hf_style else ""
        has_bos = isinstance(first, SpecialToken) and self._tokenizer.special_id(first.token) == bos
        return [] if has_bos else [bos]

    def _check_num_bytes(self, segments: Iterable[Segment]) -> None:
        """Raise PromptError if the text is certainly too long. Tokenizing it could take a second."""
        max_token_bytes = self._tokenizer.max_token_bytes
        if max_token_bytes is not None:
            num_bytes = sum(len(segment.encode()) for segment in segments if isinstance(segment, str))
            num_images = sum(isinstance(segment, ImageRef) for segment in segments)
            num_tokens = math.ceil(num_bytes / max_token_bytes)
            if num_tokens >= self._context_length:
                raise self._too_long(f"at least {num_tokens}", num_images)

    def _check_length(self, prompt: Prompt) -> None:
        num_tokens = len(prompt.token_ids)
        if num_tokens >= self._context_length:
            raise self._too_long(str(num_tokens), len(prompt.images))

    def _too_long(self, num_tokens: str, num_images: int) -> PromptError:
        context_length = self._context_length
        if num_images:
            images = "1 image" if num_images == 1 else f"{num_images} images"
            message = (
                f"The prompt has {num_tokens} tokens, including {images}. The model's context "
                f"length is {context_length} tokens for prompt and output. Shorten the text or send fewer "
                "images."
            )
        else:
            message = (
                f"The prompt has {num_tokens} tokens. The model's context length is {context_length} tokens "
                "for prompt and output. Shorten the text."
            )
        return PromptError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message)


def _image_span(image: ImageRef, tokens: ImageTokens, *, start: int) -> ImageSpan:
    return ImageSpan(
        start=start,
        length=len(tokens.token_ids),
        digest=image.digest,
        width=tokens.width,
        height=tokens.height,
        num_features=tokens.num_features,
    )


def _surround_images(segments: Iterable[Segment], expanded: Iterable[ImageTokens]) -> Iterator[Segment]:
    """Insert the texts that belong to the images."""
    remaining = iter(expanded)
    for segment in segments:
        if isinstance(segment, ImageRef):
            tokens = next(remaining)
            yield from (tokens.before, segment, tokens.after)
        else:
            yield segment


def _join_texts(segments: Iterable[Segment]) -> list[Segment]:
    """Join adjacent texts, because tokenization depends on where the text is split, and drop empty texts."""
    joined: list[Segment] = []
    for segment in segments:
        if segment == "":
            continue
        if isinstance(segment, str) and joined and isinstance(joined[-1], str):
            joined[-1] += segment
        else:
            joined.append(segment)
    return joined
