"""Translates config.json from the layout of TinyLLaVA Factory (``tinyllava/*`` and derivatives) to llava-hf.

Source: ``configuration_tinyllava.py`` and ``vision_tower/base.py`` in TinyLLaVA Factory. Unlike the original
LLaVA, it drops the first feature of a SigLIP tower too, although this is a patch and not a class token.
"""

from __future__ import annotations

from typing import Any

from llava_worker.model.config.original_config import projector_depth

__all__ = ["from_tinyllava_config", "is_tinyllava"]

_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_ASPECT_RATIOS = ("square", "pad")


def is_tinyllava(values: dict[str, Any]) -> bool:
    """Return whether config.json is in the layout of TinyLLaVA Factory."""
    return values.get("model_type") == "tinyllava"


def from_tinyllava_config(values: dict[str, Any]) -> dict[str, Any]:
    """Translate config.json to the llava-hf layout. Raises ValueError if an option is not supported."""
    strategy = _supported(values, "vision_feature_select_strategy", "patch", tuple(_STRATEGIES))
    if values.get("vision_model_name_or_path2"):
        name = values["vision_model_name_or_path2"]
        raise ValueError(
            f"vision_model_name_or_path2 is {name!r:.80}; models with two towers are not supported."
        )
    return {
        "model_type": "llava",
        "text_config": values.get("text_config"),
        "vision_config": values.get("vision_config"),
        # The vocabulary does not contain an image token, so any ID can be used.
        "image_token_index": 0,
        "projector_depth": projector_depth(values.get("connector_type"), "connector_type"),
        "vision_feature_layer": values.get("vision_feature_layer", -2),
        "vision_feature_select_strategy": _STRATEGIES[strategy],
        "image_aspect_ratio": _supported(values, "image_aspect_ratio", "square", _ASPECT_RATIOS),
    }


def _supported(values: dict[str, Any], name: str, default: str, supported: tuple[str, ...]) -> str:
    value = values.get(name) or default
    if value not in supported:
        raise ValueError(f"{name} is {value!r:.80}; supported values are {', '.join(supported)}.")
    return str(value)
