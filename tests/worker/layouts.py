"""The same checkpoint in llava-hf's layout and in the original's, either way."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

# (llava-hf's prefix, the original's)
PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("image_newline", "model.image_newline"),
)
DECODERS = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}


def write_original(source: Path, target: Path, *, tower: Path | None = None) -> Path:
    """From llava-hf's layout; the tower's weights and configuration go to ``tower`` if there is one."""
    values = json.loads((source / "config.json").read_text())
    tensors = renamed(load_file(source / "model.safetensors"), PREFIXES)
    prefix = PREFIXES[2][1]
    vision = {"vision_config": values["vision_config"]}
    target.mkdir(exist_ok=True)
    if tower is not None:
        parts = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in parts}
        tower.mkdir(exist_ok=True)
        save(tower, values["vision_config"], renamed(parts, [(prefix, "vision_model.")]))
        vision = {}
    is_next = values["model_type"] == "llava_next"
    grid = {
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[width, height] for height, width in values.get("image_grid_pinpoints", [])],
    }
    text = values["text_config"]
    config = text | vision | (grid if is_next else {})
    config |= {
        "model_type": DECODERS[text["model_type"]],
        "image_aspect_ratio": "anyres" if is_next else "pad",
        "mm_vision_tower": "somewhere/a-small-tower",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": values["vision_config"]["hidden_size"],
        "mm_vision_select_layer": values["vision_feature_layer"],
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
    }
    save(target, config, tensors)
    return target


def write_hf(source: Path, target: Path, *, like: Path) -> Path:
    """From the original's layout, with its tower inside; the configuration is that of ``like``."""
    target.mkdir(exist_ok=True)
    back = sorted(((original, hf) for hf, original in PREFIXES), key=lambda pair: -len(pair[0]))
    tensors = renamed(load_file(source / "model.safetensors"), back)
    save(target, json.loads((like / "config.json").read_text()), tensors)
    return target


def save(folder: Path, config: dict[str, object], tensors: Tensors) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(tensors: Tensors, prefixes: list | tuple) -> Tensors:
    return {rename(name, prefixes): tensor for name, tensor in tensors.items()}


def rename(name: str, prefixes: list | tuple) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
