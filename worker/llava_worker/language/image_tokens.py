"""The tokens of images in a prompt.

The native engine represents an image by one image token per feature vector. With transformers' processors,
the tokens of an image can include others, such as marks of rows and columns, and text around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import ImageRef

from llava_worker.language.prompt_formats import PromptError
from llava_worker.model.config.image_grid import ImageLayout

if TYPE_CHECKING:
    from llava_worker.engine.transformers.processor import ModelProcessor

__all__ = ["ImageExpander", "ImageTokens", "ProcessorExpander", "TileExpander"]


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """The tokens of one image.

    ``before`` and ``after`` are texts that are tokenized together with the adjacent text of the prompt.
    ``width`` and ``height`` are set only if the image features depend on them. ``num_features`` is that of
    `ImageSpan`.
    """

    token_ids: list[int]
    before: str = ""
    after: str = ""
    width: int = 0
    height: int = 0
    num_features: int = 0


class ImageExpander(Protocol):
    """The interface of the classes that determine the tokens of images."""

    def expand(self, images: Sequence[ImageRef]) -> list[ImageTokens]:
        """Return the tokens of all images of a prompt. Raises PromptError."""
        ...


class TileExpander:
    """One image token per feature vector, for images that are split into square tiles."""

    def __init__(self, layout: ImageLayout, image_token_id: int) -> None:
        self._layout = layout
        self._image_token_id = image_token_id

    def expand(self, images: Sequence[ImageRef]) -> list[ImageTokens]:
        """Implement ``ImageExpander.expand``. Raises PromptError if the tiles were made for another model."""
        return [self._expand(image) for image in images]

    def _expand(self, image: ImageRef) -> ImageTokens:
        # A grid has at least one tile in addition to the base view. A single tile means low detail.
        has_grid = self._layout.has_grid and image.num_tiles > 1
        plan = self._layout.plan(image.width, image.height) if has_grid else self._layout.plan(0, 0)
        if (image.side, image.num_tiles) != (self._layout.side, plan.num_tiles):
            raise _wrong_preprocessing(
                f"{image.num_tiles} tiles of {image.side} pixels",
                f"{plan.num_tiles} tiles of {self._layout.side} pixels",
            )
        # The size is set only for grids, whose features depend on it. Without a grid, the same pixels produce
        # the same features regardless of the original image's size.
        width, height = (image.width, image.height) if has_grid else (0, 0)
        num_features = plan.num_tiles * self._layout.tokens_per_tile
        token_ids = [self._image_token_id] * plan.num_tokens
        return ImageTokens(token_ids, width=width, height=height, num_features=num_features)


class ProcessorExpander:
    """The tokens that a checkpoint's processor inserts. Thread-safe."""

    def __init__(self, processor: ModelProcessor, *, special_tokens: Iterable[str], max_side: int) -> None:
        """``max_side`` is the maximum width and height of an image in pixels."""
        self._processor = processor
        self._max_side = max_side
        by_length = sorted(special_tokens, key=len, reverse=True)
        self._special_tokens = re.compile("|".join(map(re.escape, by_length)))
        self._tokens_of = lru_cache(maxsize=1024)(self._tokenize)

    def expand(self, images: Sequence[ImageRef]) -> list[ImageTokens]:
        """Implement ``ImageExpander.expand``. Raises PromptError if the processor rejects the images."""
        from llava_worker.engine.transformers.processor import ProcessorError

        if not images:
            return []
        for image in images:
            if image.side or image.num_tiles != 1 or max(image.width, image.height) > self._max_side:
                found = f"{image.num_tiles} tiles of {image.side} pixels"
                expected = f"an RGB image of up to {self._max_side} pixels per side"
                raise _wrong_preprocessing(found, expected)
        try:
            texts = self._processor.replacements([(image.width, image.height) for image in images])
        except ProcessorError as error:
            raise PromptError(
                ErrorCode.INVALID_REQUEST,
                f"The model's image processor failed: {error}. Send other images.",
            ) from error
        expanded = []
        for image, text in zip(images, texts, strict=True):
            before, token_ids, after = self._tokens_of(text)
            expanded.append(ImageTokens(list(token_ids), before, after, image.width, image.height))
        return expanded

    def _tokenize(self, text: str) -> tuple[str, tuple[int, ...], str]:
        """Split off the text before the first and after the last special token, and tokenize the rest."""
        matches = list(self._special_tokens.finditer(text))
        start, end = (matches[0].start(), matches[-1].end()) if matches else (0, len(text))
        return text[:start], tuple(self._processor.encode(text[start:end])), text[end:]


def _wrong_preprocessing(found: str, expected: str) -> PromptError:
    return PromptError(
        ErrorCode.INTERNAL_ERROR,
        f"An image was preprocessed into {found}, but the model requires {expected}. The workers that serve "
        "this model have different preprocessing configurations.",
    )
