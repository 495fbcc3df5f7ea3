"""Translates config.json from the original LLaVA layout (``liuhaotian/*`` and derivatives) to llava-hf.

In the original layout, config.json is the decoder's configuration with additional ``mm_`` keys. It contains
only the name of the vision tower. The tower's configuration comes from the tower's own config.json, if
available, or from the table in this module.
"""

from __future__ import annotations

import ast
import re
from typing import Any

__all__ = [
    "CLIP_L_336",
    "SIGLIP_SO400M_384",
    "is_original",
    "max_tiles_of",
    "projector_depth",
    "to_hf_config",
]

CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14} | {
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
}
CLIP_L_224 = CLIP_L | {"image_size": 224}
CLIP_L_336 = CLIP_L | {"image_size": 336}
SIGLIP_SO400M_384 = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27} | {
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}

# Keyed by the last part of the name, because in some checkpoints, the name is a path on the author's machine.
_TOWERS = {
    "clip_4layers_336": CLIP_L_336,
    "clip-vit-large-patch14": CLIP_L_224,
    "clip-vit-large-patch14-336": CLIP_L_336,
    "siglip-so400m-patch14-384": SIGLIP_SO400M_384,
    "TinyLLaVA-3.1B-SigLIP": SIGLIP_SO400M_384,
    "TinyLLaVA-1.5B-SigLIP": SIGLIP_SO400M_384,
}
# ViP-LLaVA concatenates the features of five layers of this tower.
_SEVERAL_LAYERS = {
    "clip_4layers_336": {"vision_feature_layer": (-2, -5, -8, -11, 6), "projector_layernorm_eps": 1e-5}
}
# "llava_phi" is LLaVA++ with Phi-3. The names with "tiny" are those of TinyLLaVA before TinyLLaVA Factory.
_DECODERS = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_phi": "phi3",
    "tiny_llava_llama": "llama",
    "tiny_llava_phi": "phi",
}
_MLP = re.compile(r"mlp(\d{1,9})x_gelu")
_MAX_LITERAL = 10_000  # characters of a list that is stored as Python code
_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")
_ANYRES_MAX = re.compile(r"anyres_max_(\d{1,6})")
_GRID_RANGE = re.compile(r"\((\d{1,3})x(\d{1,3})\)")
_MAX_GRID_RANGE = 1 << 10  # canvas sizes


def is_original(values: dict[str, Any]) -> bool:
    """Return whether config.json is in the original layout, which contains the name of a vision tower."""
    return "mm_vision_tower" in values


def max_tiles_of(aspect_ratio: str) -> int | None:
    """Return N if ``image_aspect_ratio`` is "anyres_max_N", or None if it is another supported value.

    Raises ValueError if it is another variant of "anyres".
    """
    match = _ANYRES_MAX.fullmatch(aspect_ratio)
    if match is not None and int(match[1]):
        return int(match[1])
    if aspect_ratio != "anyres" and aspect_ratio.startswith("anyres"):
        raise ValueError(
            f"The image aspect ratio {aspect_ratio!r:.80} is not supported. Aspect ratios that split images "
            "are anyres and anyres_max_<tiles>, for example anyres_max_9."
        )
    return None


def to_hf_config(values: dict[str, Any], tower: dict[str, Any] | None) -> dict[str, Any]:
    """Translate config.json to the llava-hf layout. ``tower`` is the vision tower's config.json.

    Raises ValueError if an option is not supported.
    """
    kind = values["model_type"]
    if kind not in _DECODERS:
        supported = ", ".join(_DECODERS)
        raise ValueError(f"model_type is {kind!r:.80}; supported values are {supported}.")
    if values.get("mm_resampler_type") is not None:
        raise ValueError(f"mm_resampler_type is {values['mm_resampler_type']!r}; it must be null.")
    vision = _vision(values, tower)
    has_class_token = vision.get("model_type", "clip_vision_model") == "clip_vision_model"
    aspect_ratio = values.get("image_aspect_ratio") or "square"
    return {
        "model_type": "llava",
        "text_config": values | {"model_type": _DECODERS[kind]},
        "vision_config": vision,
        # In the original layout, the vocabulary does not contain an image token, so any ID can be used.
        "image_token_index": 0,
        "projector_depth": projector_depth(values.get("mm_projector_type") or "linear"),
        "vision_feature_layer": values.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": _strategy(values, has_class_token),
        "image_aspect_ratio": aspect_ratio,
        **_SEVERAL_LAYERS.get(str(values["mm_vision_tower"]), {}),
        **(_tiling(values, vision) if str(aspect_ratio).startswith("anyres") else {}),
        "mm_use_im_start_end": values.get("mm_use_im_start_end") or False,
        "vision_tower_name": str(values["mm_vision_tower"]),
    }


def _tiling(values: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a model that splits images into tiles."""
    merge_type = values.get("mm_patch_merge_type") or "flat"  # the default of the original
    if merge_type not in _MERGE_TYPES:
        supported = ", ".join(_MERGE_TYPES)
        raise ValueError(f"mm_patch_merge_type is {merge_type!r}; supported values are {supported}.")
    pinpoints = _pinpoints(values.get("image_grid_pinpoints"), vision.get("image_size"))
    return {"patch_merge_type": merge_type, "rounds_sizes": False, "image_grid_pinpoints": pinpoints}


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object.")
    return value


def _vision(values: dict[str, Any], tower: dict[str, Any] | None) -> dict[str, Any]:
    if tower is not None:  # from a complete CLIP or SigLIP model, or from only its tower
        if "vision_config" not in tower:
            return tower
        kind = f"{tower.get('model_type', 'clip')}_vision_model"
        return {"model_type": kind, **_object(tower["vision_config"], "vision_config")}
    if "vision_config" in values:
        return _object(values["vision_config"], "vision_config")
    name = str(values["mm_vision_tower"])
    known = _TOWERS.get(name.rstrip("/").rpartition("/")[2])
    if known is None:
        raise ValueError(f"Vision tower {name!r} is not recognized. Set vision_tower to its folder.")
    return known


def projector_depth(kind: Any, name: str = "mm_projector_type") -> int:
    """Return the number of linear layers in a projector of this type. ``name`` is the key in config.json.

    Raises ValueError if the type is not supported.
    """
    if kind in ("identity", "linear"):
        return int(kind == "linear")
    match = _MLP.fullmatch(kind) if isinstance(kind, str) else None
    if match is None:
        raise ValueError(
            f"{name} is {kind!r:.80}; supported values are linear, identity and mlp<depth>x_gelu, for "
            "example mlp2x_gelu."
        )
    return int(match[1])


def _strategy(values: dict[str, Any], has_class_token: bool) -> str:
    feature = values.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ValueError(
            f"mm_vision_select_feature is {feature!r}; supported values are patch and cls_patch."
        )
    return "default" if feature == "patch" and has_class_token else "full"


def _pinpoints(pinpoints: Any, side: Any) -> list[tuple[int, int]]:
    """Convert (width, height) pairs to a list of (height, width) pairs.

    ``pinpoints`` is a list, a string with a list, or the range of sizes "(1x1),...,(6x6)" in units of
    ``side``.
    """
    try:
        if isinstance(pinpoints, str):
            corners = _GRID_RANGE.findall(pinpoints[:_MAX_LITERAL])
            literal = _range_of(corners, side) if corners else ast.literal_eval(pinpoints[:_MAX_LITERAL])
            return [(height, width) for width, height in literal]
        return [(height, width) for width, height in pinpoints or ()]
    # Python's parser raises RecursionError or MemoryError if a literal is nested too deeply.
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"image_grid_pinpoints is {pinpoints!r:.200}; it must be a list of [width, height] pairs, or a "
            "range such as (1x1),...,(6x6)."
        ) from error


def _range_of(corners: list[tuple[str, str]], side: int) -> list[tuple[int, int]]:
    """Return all (width, height) pairs between the first and the last pair of numbers of tiles."""
    (first_columns, first_rows), (last_columns, last_rows) = (map(int, corners[i]) for i in (0, -1))
    columns, rows = range(first_columns, last_columns + 1), range(first_rows, last_rows + 1)
    if len(columns) * len(rows) > _MAX_GRID_RANGE:
        raise ValueError("too many sizes")
    return [(side * i, side * j) for i in columns for j in rows]
