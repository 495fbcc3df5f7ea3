"""Selects the engine for a checkpoint.

The decision depends only on the types of the model and its parts in config.json. If the native engine
supports them but not, for example, the size of a layer, its error says so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llava_worker.model.config.original_config import is_original
from llava_worker.model.config.untrusted_file import CheckpointError, read_json_object

__all__ = ["EngineName", "EngineSetting", "choose_engine", "unsupported_part"]

EngineSetting: TypeAlias = Literal["auto", "native", "transformers"]
EngineName: TypeAlias = Literal["native", "transformers"]

logger = logging.getLogger(__name__)

# The types that `ModelConfig` accepts.
_NATIVE = {
    "text_config": ("llama", "mistral", "qwen2"),
    "vision_config": ("clip_vision_model", "siglip_vision_model"),
}
_NATIVE_MODELS = ("llava", "llava_next", "llava_onevision", "vipllava")


def choose_engine(setting: EngineSetting, folder: Path) -> EngineName:
    """Return the engine for the checkpoint whose config.json is in the folder.

    Raises CheckpointError if no engine supports the checkpoint.
    """
    if setting != "auto":
        return setting
    path = folder / "config.json"
    values = read_json_object(path)
    unsupported = unsupported_part(values)
    if unsupported is None:
        return "native"
    from llava_worker.engine.transformers.checkpoint import is_model_type

    model_type = values["model_type"]
    if is_model_type(model_type):
        logger.info("engine auto: selected transformers, because the native engine has no %s", unsupported)
        return "transformers"
    native = ", ".join(_NATIVE_MODELS)
    raise CheckpointError(
        f"{path} has model_type {model_type!r}. The native engine supports {native} and LLaVA's original "
        "layout, and transformers has no AutoModelForImageTextToText of this type. Use a checkpoint of a "
        "supported type, for example llava_onevision, qwen2_vl, gemma3 or internvl."
    )


def unsupported_part(values: dict[str, Any]) -> str | None:
    """Return the type in config.json that the native engine lacks, or None if it supports all of them.

    Missing and invalid types are left to the native engine, which reports them.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        return None
    if is_original(values):
        return None
    if model_type not in _NATIVE_MODELS:
        return f"model_type {model_type!r}"
    for part, supported in _NATIVE.items():
        config = values.get(part)
        kind = config.get("model_type") if isinstance(config, dict) else None
        if isinstance(kind, str) and kind not in supported:
            return f"{part} of model_type {kind!r}"
    return None
