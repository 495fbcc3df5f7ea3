"""Selects the engine for a checkpoint.

The decision depends only on the types of the model and its parts in config.json. If the native engine
supports them but not, for example, the size of a layer, its error says so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from llava_worker.model.config.original_config import is_original
from llava_worker.model.config.untrusted_file import CheckpointError, read_json_object

__all__ = ["EngineName", "EngineSetting", "choose_engine"]

EngineSetting: TypeAlias = Literal["auto", "native", "transformers"]
EngineName: TypeAlias = Literal["native", "transformers"]

logger = logging.getLogger(__name__)

_NATIVE_MODELS = ("llava", "llava_next", "llava_onevision", "vipllava", "tinyllava")
# The types of parts that `ModelConfig` accepts.
_NATIVE_PARTS = {
    "text_config": ("llama", "mistral", "qwen2", "phi", "phi3"),
    "vision_config": ("clip_vision_model", "siglip_vision_model"),
}


class _Unsupported(NamedTuple):
    """A type in config.json that the native engine lacks, and the types that it supports at this place."""

    field: str
    value: str
    supported: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.field} {self.value!r:.80}"


def choose_engine(setting: EngineSetting, folder: Path) -> EngineName:
    """Return the engine for the checkpoint whose config.json is in the folder.

    Raises CheckpointError if no engine supports the checkpoint.
    """
    if setting != "auto":
        return setting
    path = folder / "config.json"
    values = read_json_object(path)
    unsupported = _find_unsupported(values)
    if unsupported is None:
        return "native"
    from llava_worker.engine.transformers.checkpoint import is_model_type

    model_type = values["model_type"]
    if is_model_type(model_type):
        logger.info("engine auto: selected transformers, because the native engine has no %s", unsupported)
        return "transformers"
    raise CheckpointError(
        f"{path} has {unsupported}; the native engine supports {', '.join(unsupported.supported)} and "
        f"LLaVA's original layout, and transformers has no AutoModelForImageTextToText for model_type "
        f"{model_type!r:.80}, so use a checkpoint of a supported type, for example llava_onevision, "
        "qwen2_vl, gemma3 or internvl."
    )


def _find_unsupported(values: dict[str, Any]) -> _Unsupported | None:
    """Return the type in config.json that the native engine lacks, or None if it supports all of them.

    Missing and invalid types are left to the native engine, which reports them.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or is_original(values):
        return None
    if model_type not in _NATIVE_MODELS:
        return _Unsupported("model_type", model_type, _NATIVE_MODELS)
    for part, supported in _NATIVE_PARTS.items():
        config = values.get(part)
        kind = config.get("model_type") if isinstance(config, dict) else None
        if isinstance(kind, str) and kind not in supported:
            return _Unsupported(f"{part}.model_type", kind, supported)
    return None
