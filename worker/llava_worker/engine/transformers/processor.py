"""The checkpoint's processor, which converts RGB images to image tokens and to inputs of the model.

The processor is transformers' class for the model type. It uses the image processors that are based on PIL,
because torchvision is not a requirement. Only images are supported, so other parts, such as a video
processor, are not loaded. Images arrive as RGB pixels, so no image format is parsed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from llava_worker.engine.core.sequence import ImageSpan, Pixels
from llava_worker.engine.transformers.checkpoint import reason_of
from llava_worker.model.config.untrusted_file import CheckpointError

__all__ = ["ImageInputs", "ModelProcessor", "ProcessorError"]

_MAX_CACHED_SIZES = 1024
_PROBE_SIZE = (64, 48)  # pixels
_UNUSED = ("input_ids", "attention_mask", "labels", "text_replacement_offsets")

Size = tuple[int, int]  # (width, height) in pixels


class ProcessorError(ValueError):
    """The processor cannot process these images. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """The model's inputs for the images of one prompt.

    ``tensors`` are passed to the model as they are. ``token_types`` are inputs with one value per prompt
    token: for each name, the values by token ID. Other tokens have the value 0. ``token_ids`` are the image
    tokens of all images, with the tokens between them.
    """

    tensors: dict[str, Tensor]
    token_types: dict[str, dict[int, int]]
    token_ids: list[int]


class ModelProcessor:
    """A processor for images only. Thread-safe."""

    def __init__(self, folder: Path, config: Any) -> None:
        """Load the processor of a model with this configuration. Raises CheckpointError."""
        self._processor = _load(folder, config)
        self._lock = threading.Lock()
        self._replacements: OrderedDict[tuple[Size, ...], list[str]] = OrderedDict()
        self.placeholder: str = getattr(self._processor, "image_token", None) or ""
        self.tokenizer = self._processor.tokenizer
        try:
            if not self.placeholder or not self.replacements([_PROBE_SIZE])[0]:
                raise ProcessorError("it does not report the tokens of an image")
        except ProcessorError as error:
            raise CheckpointError(
                f"model_type {config.model_type!r} is not supported by the transformers engine: its "
                f"processor, {type(self._processor).__name__}, cannot process a test image: {error}."
            ) from error

    def replacements(self, sizes: Items[Size]) -> list[str]:
        """Return the text that replaces the placeholder of each image of a prompt. Raises ProcessorError.

        It depends only on the sizes of the prompt's images, so blank images are processed.
        """
        key = tuple(sizes)
        with self._lock:
            if (known := self._replacements.get(key)) is not None:
                self._replacements.move_to_end(key)
                return known
        inputs = self._process([Image.new("RGB", size) for size in sizes])
        offsets = inputs.get("text_replacement_offsets") or [[]]
        texts = [str(each["replacement"]) for each in offsets[0]]
        if len(texts) != len(key):
            raise ProcessorError(f"it reports the tokens of {len(texts)} images instead of {len(key)}")
        with self._lock:
            self._replacements[key] = texts
            if len(self._replacements) > _MAX_CACHED_SIZES:
                self._replacements.popitem(last=False)
        return texts

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer adds a beginning-of-sequence token to each text."""
        with self._lock:
            token_ids = self.tokenizer("a")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return bos is not None and token_ids[:1] == [bos]

    def encode(self, text: str) -> list[int]:
        """Return the token IDs of a replacement."""
        with self._lock:
            return [int(each) for each in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def image_inputs(self, images: Items[ImageSpan], pixels: Items[Pixels]) -> ImageInputs:
        """Return the inputs for the images of a prompt. Raises ProcessorError."""
        return self._inputs(
            [
                Image.fromarray(np.frombuffer(data, np.uint8).reshape(image.height, image.width, 3))
                for image, data in zip(images, pixels, strict=True)
            ]
        )

    def blank_inputs(self) -> ImageInputs:
        """Return the inputs for a blank image, for tests of the model."""
        return self._inputs([Image.new("RGB", _PROBE_SIZE, (90, 120, 150))])

    def _inputs(self, images: list[Image.Image]) -> ImageInputs:
        values = self._process(images)
        token_ids = values["input_ids"][0].tolist()
        tensors, token_types = {}, {}
        for name, value in values.items():
            if name in _UNUSED or not isinstance(value, Tensor):
                continue
            if tuple(value.shape) == (1, len(token_ids)) and not value.is_floating_point():
                token_types[name] = dict(zip(token_ids, value[0].tolist(), strict=True))
            else:
                tensors[name] = value
        return ImageInputs(tensors, token_types, token_ids)

    def _process(self, images: list[Image.Image]) -> dict[str, Any]:
        try:
            with self._lock:
                return dict(
                    self._processor(
                        text=["\n".join([self.placeholder] * len(images))],
                        images=[images],
                        return_tensors="pt",
                        return_text_replacement_offsets=True,
                    )
                )
        except Exception as error:  # a processor can raise any type of exception for unusual images
            raise ProcessorError(reason_of(error)) from error


def _load(folder: Path, config: Any) -> Any:
    from transformers import AutoImageProcessor
    from transformers.models.auto import tokenization_auto

    tokenizers: Any = tokenization_auto.AutoTokenizer
    options = {"trust_remote_code": False, "local_files_only": True}
    loaders = {
        "tokenizer": lambda: tokenizers.from_pretrained(folder, **options),
        "image_processor": lambda: AutoImageProcessor.from_pretrained(folder, backend="pil", **options),
    }
    try:
        base = _class_of(config)
        images_only: Any = type(base.__name__, (base,), {"check_argument_for_proper_class": _check_part})
        parts = [loaders.get(name, lambda: None)() for name in base.get_attributes()]
        values, others = base.get_processor_dict(folder, local_files_only=True)
        return images_only.from_args_and_dict(parts, values, **others)
    except ImportError as error:
        raise CheckpointError(
            f"The processor of model_type {config.model_type!r} requires a package that is not installed: "
            f"{_package(error)}."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # the files of a processor are untrusted, and its class can raise anything
        reason = reason_of(error)
        raise CheckpointError(f"The processor in {folder} could not be loaded: {reason}.") from error


def _class_of(config: Any) -> Any:
    """Return the processor class of a model. Raises CheckpointError, or ImportError for a missing package."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        return PROCESSOR_MAPPING[type(config)]
    except KeyError as error:
        raise CheckpointError(
            f"model_type {config.model_type!r} is not supported by the transformers engine, because "
            "transformers has no image processor for it."
        ) from error


def _check_part(self: Any, name: str, part: Any) -> Any:
    """Accept missing parts. They are not used, because only images are processed."""
    if part is None:
        return None
    return super(type(self), self).check_argument_for_proper_class(name, part)


def _package(error: ImportError) -> str:
    return "torchvision" if "orchvision" in str(error) else reason_of(error)
