"""``python -m bench.checkpoint [FOLDER]``: write a LLaVA-1.5 checkpoint with random weights.

Speed depends on the number of weights, not on their values, so there is no need to download a trained model.
The checkpoint uses the llava-hf layout, takes up about 3.3 GB of disk space and is written one shard at a
time. The weights are scaled so that activations neither vanish nor explode from layer to layer.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from llava_cli.bench.prompts import WORDS
from safetensors.torch import save_file

from bench.record import WORK
from bench.shape import LLAVA_1_5_7B, LLAVA_1_5_SMALL, MINI, Shape
from bench.vocabulary import chat_template, write_tokenizer

__all__ = [
    "DEFAULT_FOLDER",
    "SHAPES",
    "draw_weight",
    "ensure_checkpoint",
    "processor_settings",
    "write_checkpoint",
]

DEFAULT_FOLDER = WORK / "llava-1.5-shaped-1.3b"
_SHARD_BYTES = 512 << 20
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # from CLIP
# Shapes and folders, keyed by the number of decoder parameters.
SHAPES = {
    "1.3b": (LLAVA_1_5_SMALL, DEFAULT_FOLDER),
    "7b": (LLAVA_1_5_7B, WORK / "llava-1.5-shaped-7b"),
    "mini": (MINI, WORK / "llava-1.5-shaped-mini"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="folder to write (default: a folder in bench/work)"
    )
    parser.add_argument("--size", choices=sorted(SHAPES), default="1.3b", help="number of decoder parameters")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape, default = SHAPES[args.size]
    folder = args.folder or default
    write_checkpoint(folder, shape, dtype=args.dtype, seed=args.seed)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e9:.2f} GB")


def ensure_checkpoint(folder: Path = DEFAULT_FOLDER, shape: Shape = LLAVA_1_5_SMALL) -> Path:
    """Return the checkpoint folder, after writing the checkpoint if it is missing or incomplete."""
    if not (folder / "config.json").is_file():
        write_checkpoint(folder, shape)
    return folder


def write_checkpoint(
    folder: Path,
    shape: Shape,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> None:
    """Write the checkpoint, replacing any existing one. ``config.json`` is written last.

    The weights are generated on ``device``. They depend on the seed and on the type of device.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _write_weights(folder, shape, getattr(torch, dtype), torch.Generator(device).manual_seed(seed))
    write_tokenizer(folder, WORDS, size=shape.vocabulary, image_id=shape.image_token_id)
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
    for name, content in processor_settings(shape).items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(shape.config(dtype), indent=2), encoding="utf-8")


def _write_weights(folder: Path, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> None:
    shards = list(_shards(shape, dtype))
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            tensor: draw_weight(tensor, size, generator).to("cpu", dtype) for tensor, size in shard.items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, name)
    total = sum(math.prod(size) for shard in shards for size in shard.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _shards(shape: Shape, dtype: torch.dtype) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    num_bytes = 0
    for name, size in shape.tensors():
        if shard and num_bytes + math.prod(size) * dtype.itemsize > _SHARD_BYTES:
            yield shard
            shard, num_bytes = {}, 0
        shard[name] = size
        num_bytes += math.prod(size) * dtype.itemsize
    yield shard


def draw_weight(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return random fp32 weights of this size, scaled by the role of the tensor with this name.

    Random weights are on the device of the generator.
    """
    if name.endswith("norm.weight") or "layrnorm.weight" in name or "layer_norm" in name and "weight" in name:
        return torch.ones(size)
    if name.endswith("bias"):
        return torch.zeros(size)
    fan_in = math.prod(size[1:]) if len(size) > 1 else size[0]
    deviation = 1.0 if "embed_tokens" in name else 1 / math.sqrt(fan_in)
    return torch.empty(size, device=generator.device).normal_(0.0, deviation, generator=generator)


def processor_settings(shape: Shape) -> dict[str, dict[str, object]]:
    side = {"height": shape.image_side, "width": shape.image_side}
    return {
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": shape.image_token_id + 1,
        },
        "special_tokens_map.json": {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "image_token": "<image>",
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": shape.patch,
            "vision_feature_select_strategy": "default",
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": shape.image_side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": side,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": _MEAN,
            "image_std": _STD,
        },
    }


if __name__ == "__main__":
    main()
