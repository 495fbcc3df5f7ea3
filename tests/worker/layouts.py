"""Convert checkpoints between the llava-hf layout and the original LLaVA's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Sequential

Tensors = dict[str, Tensor]

# (prefix in llava-hf's layout, prefix in the original layout)
PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("image_newline", "model.image_newline"),
)
VIP_PREFIXES = (
    ("model.mm_projector.", "model.mm_projector.final_linear."),
    ("multi_modal_projector.projector_layernorm.", "model.mm_projector.clip_layernorm."),
)
PROCESSOR = "preprocessor_config.json"
DECODERS = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}
RANK, ALPHA = 4, 6  # LoRA settings of the adapter
# Names of tensors in the base model. An adapter adds a prefix to these names.
MATRICES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.1.mlp.down_proj",
)
PROJECTOR = ("model.mm_projector.0.weight", "model.mm_projector.2.bias")


def write_original(
    source: Path, target: Path, *, tower: Path | None = None, merge_type: str = "spatial_unpad"
) -> Path:
    """Convert a checkpoint from llava-hf's layout.

    If ``tower`` is given, move the vision tower to that folder.
    """
    values = json.loads((source / "config.json").read_text())
    tensors = renamed(load_file(source / "model.safetensors"), PREFIXES)
    is_vip = values["model_type"] == "vipllava"
    if is_vip:
        tensors = renamed(tensors, VIP_PREFIXES)
    if merge_type != "spatial_unpad":
        del tensors["model.image_newline"]
    target.mkdir(exist_ok=True)
    ratios = {"llava": "pad", "vipllava": "pad", "llava_next": "anyres"}
    ratio = values.get("vision_aspect_ratio") or ratios[values["model_type"]]
    grid = {
        "mm_patch_merge_type": merge_type,
        "image_grid_pinpoints": [[width, height] for height, width in values.get("image_grid_pinpoints", [])],
    }
    text = values["text_config"]
    config = text | {"vision_config": values["vision_config"]} | (grid if ratio != "pad" else {})
    config |= {
        "model_type": DECODERS[text["model_type"]],
        "image_aspect_ratio": ratio,
        "mm_vision_tower": "clip_4layers_336" if is_vip else "somewhere/a-small-tower",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": values["vision_config"]["hidden_size"],
        "mm_vision_select_layer": -2 if is_vip else values["vision_feature_layer"],
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
    }
    save(target, config, tensors)
    copy_processor(source, target)
    return target if tower is None else split_tower(target, target, tower)


def split_tower(source: Path, target: Path, tower: Path) -> Path:
    """Split an original checkpoint into its vision tower and a checkpoint that only references the tower."""
    prefix = PREFIXES[2][1]
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    parts = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    for folder in (target, tower):
        folder.mkdir(exist_ok=True)
    save(tower, config.pop("vision_config"), renamed(parts, [(prefix, "vision_model.")]))
    save(target, config, {name: tensor for name, tensor in tensors.items() if name not in parts})
    copy_processor(source, tower)
    (target / PROCESSOR).unlink(missing_ok=True)
    return target


def write_hf(source: Path, target: Path, *, like: Path) -> Path:
    """Convert a checkpoint that includes a tower from the original layout.

    The configuration is copied from ``like``.
    """
    target.mkdir(exist_ok=True)
    back = sorted(((original, hf) for hf, original in PREFIXES), key=lambda pair: -len(pair[0]))
    tensors = renamed(load_file(source / "model.safetensors"), back)
    save(target, json.loads((like / "config.json").read_text()), tensors)
    copy_processor(source, target)
    return target


def copy_processor(source: Path, target: Path) -> None:
    """Copy the image processor's configuration, if it exists."""
    if (source / PROCESSOR).is_file():
        (target / PROCESSOR).write_text((source / PROCESSOR).read_text())


def write_adapter(base: Path, folder: Path) -> Path:
    """Write an adapter like those from the original LoRA training, for a base model from `write_original`."""
    folder.mkdir()
    torch.manual_seed(3)
    whole = load_file(base / "model.safetensors")
    factors = {}
    for name in MATRICES:
        rows, columns = whole[f"{name}.weight"].shape
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, columns)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, RANK)
    save_file(factors, folder / "adapter_model.safetensors")
    replaced = {f"base_model.model.{name}": torch.randn(whole[name].shape) for name in PROJECTOR}
    save_file(replaced, folder / "non_lora_trainables.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


def replace_projector(folder: Path, kind: str | None, projector: Sequential) -> None:
    """Replace the projector of an original checkpoint.

    ``kind`` is the ``mm_projector_type``, or None for the first LLaVA's single layer.
    """
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if "mm_projector" not in name}
    for index, layer in enumerate(projector):
        place = f"{2 * index}." if len(projector) > 1 else ""
        for name, parameter in layer.named_parameters():
            tensors[f"model.mm_projector.{place}{name}"] = parameter.detach()
    config = json.loads((folder / "config.json").read_text()) | {"mm_projector_type": kind}
    save(folder, {key: value for key, value in config.items() if value is not None}, tensors)


def save(folder: Path, config: dict[str, object], tensors: Tensors) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(tensors: Tensors, prefixes: Iterable[tuple[str, str]]) -> Tensors:
    return {rename(name, prefixes): tensor for name, tensor in tensors.items()}


def rename(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
