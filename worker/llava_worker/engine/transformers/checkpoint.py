"""Reads and checks a checkpoint's configuration and weight files, before transformers opens them.

Both are untrusted. transformers allocates what config.json describes and initializes missing tensors with
random values, so the model must not be larger than its files, and all of its tensors must exist. Code in a
checkpoint is never executed, and only safetensors files are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from llava_worker.model.config.model_config import TOKEN_IDS
from llava_worker.model.config.untrusted_file import (
    CheckpointError,
    read_json_object,
    require_model_type,
)
from llava_worker.model.loading.checkpoint_files import PICKLED, StoredTensor, find_weights, read_file
from llava_worker.model.loading.weights_digest import digest_weights

__all__ = ["TransformersCheckpoint", "check_size", "is_model_type", "read_checkpoint", "reason_of"]

_DEFAULT_CONTEXT = 4096  # for configurations without max_position_embeddings
_MAX_NUMBER = 1 << 31
_MAX_LAYERS = 1024
_MAX_LABELS = 4096
_LAYERS = re.compile("layers$|depth$|^num_hidden_layers|num_stages$")
_CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
# A model may have small tensors that its files omit because they can be computed.
_MAX_OMITTED = 1 << 20


@dataclass(frozen=True, slots=True)
class TransformersCheckpoint:
    """A checked checkpoint.

    ``config`` is transformers' configuration object. ``weights`` are the tensors in the files.
    """

    folder: Path
    config: Any
    weights: Mapping[str, StoredTensor]

    @property
    def weights_digest(self) -> str:
        """See `digest_weights`."""
        return digest_weights(self.weights, {})

    @property
    def num_parameters(self) -> int:
        return sum(_num_elements(tensor) for tensor in self.weights.values())

    @property
    def context_length(self) -> int:
        """The maximum number of tokens for which the decoder was trained."""
        text = self.config.get_text_config(decoder=True)
        length = getattr(text, "max_position_embeddings", None)
        if length is None:
            return _DEFAULT_CONTEXT
        if not isinstance(length, int) or length < 1:
            path = self.folder / "config.json"
            raise CheckpointError(
                f"{path}: max_position_embeddings is {length!r}; it must be an integer of at least 1."
            )
        return length

    def check_numbers(self) -> None:
        """Raise CheckpointError if the context length or an end-of-sequence token is invalid."""
        _ = self.context_length, self.eos_ids()

    def eos_ids(self) -> frozenset[int]:
        """Return the end-of-sequence token IDs from generation_config.json, or else from config.json."""
        path = self.folder / "generation_config.json"
        text = self.config.get_text_config(decoder=True)
        sources = (
            read_json_object(path).get("eos_token_id"),
            getattr(self.config, "eos_token_id", None),
            getattr(text, "eos_token_id", None),
        )
        eos: Any = next((source for source in sources if source is not None), [])
        try:
            token_ids = TOKEN_IDS.validate_python(eos)
        except ValidationError as error:
            raise CheckpointError(
                f"{path} is invalid. eos_token_id must be a token ID or a list of token IDs."
            ) from error
        return frozenset([token_ids] if isinstance(token_ids, int) else token_ids)


def is_model_type(name: object) -> bool:
    """Return whether transformers has an image-text-to-text model of this type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def read_checkpoint(folder: Path) -> TransformersCheckpoint:
    """Read the checkpoint in the folder. Its model and processor are not created. Raises CheckpointError."""
    for name in _CONFIG_FILES:
        _check_numbers(folder / name)
    config = _read_config(folder)
    weights = _read_weights(folder)
    return TransformersCheckpoint(folder, config, weights)


def _read_config(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. {folder} is not a model folder.")
    values = read_json_object(path)
    model_type = require_model_type(values, path)
    if not is_model_type(model_type):
        raise CheckpointError(
            f"{path}: model_type is {model_type!r:.80}, for which transformers has no "
            "AutoModelForImageTextToText. Use a model that has one, such as llava_onevision, qwen2_vl, "
            "gemma3 or internvl."
        )
    if values.get("quantization_config") is not None:
        raise CheckpointError(
            f"{path} has a quantization_config, which the transformers engine does not support. Use the "
            "original weights with --precision int8 or int4."
        )
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        config = CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # a configuration class can raise any type of exception
        raise CheckpointError(f"{path} is invalid: {reason_of(error)}.") from error
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"{path}: model_type {model_type!r} is an encoder-decoder model, which the transformers engine "
            "does not support. Use a model that has only a decoder."
        )
    return config


def _check_numbers(path: Path) -> None:
    """Raise CheckpointError if a number in the file is implausibly large."""
    for name, value in _numbers(read_json_object(path)):
        limit = _MAX_LAYERS if _LAYERS.search(name) else _MAX_NUMBER
        if name == "num_labels":
            limit = _MAX_LABELS
        if not -limit <= value <= limit:
            raise CheckpointError(f"{path}: {name} is {value}; the limit is {limit}.")


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the names and values of all integers, except in lists of objects."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool):
                yield name, item


def _read_weights(folder: Path) -> dict[str, StoredTensor]:
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} contains an adapter, which the transformers engine does not support. Merge it into "
            "its base model."
        )
    weights: dict[str, StoredTensor] = {}
    for path in find_weights(folder):
        if path.suffix in PICKLED:
            raise CheckpointError(
                f"{path} is a pickle file, which the transformers engine does not read, because it can "
                "execute code. Convert it to safetensors."
            )
        weights |= {tensor.name: tensor for tensor in read_file(path, allow_pickle=False)}
    return weights


def check_size(checkpoint: TransformersCheckpoint) -> None:
    """Raise CheckpointError if config.json describes more parameters than there are in the files."""
    from transformers import AutoModelForImageTextToText

    path = checkpoint.folder / "config.json"
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(checkpoint.config, trust_remote_code=False)
    except Exception as error:  # a model class can raise any type of exception
        raise CheckpointError(f"{path} is invalid: {reason_of(error)}.") from error
    num_described = sum(each.numel() for each in [*model.parameters(), *model.buffers()])
    num_stored = checkpoint.num_parameters
    if num_described > num_stored + _MAX_OMITTED:
        raise CheckpointError(
            f"{path} describes a model with {num_described} parameters, but the weight files contain only "
            f"{num_stored}. The model folder is incomplete or inconsistent."
        )


def _num_elements(tensor: StoredTensor) -> int:
    return tensor.num_bytes // tensor.dtype.itemsize


def reason_of(error: Exception) -> str:
    """Return the message of an error as one line of limited length without a period, for other messages."""
    return " ".join(str(error).split())[:500].rstrip(".") or type(error).__name__
