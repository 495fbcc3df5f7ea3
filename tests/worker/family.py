"""Small random models of every class in the LLaVA family, with reference logits from transformers.

This module implements the parts that transformers lacks: the one-layer projector, the other ways to merge the
features of tiles, and the features of LLaVA-1.5-HD.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llava_worker.model.config.image_grid import ImageLayout, best_resolution, size_on_canvas
from llava_worker.model.config.model_config import read_config

from tests.worker.checkpoints import (
    MEAN,
    STD,
    Prompt,
    Reference,
    normalized,
    reference_logits,
    write_checkpoint,
)
from tests.worker.layouts import replace_projector, write_original
from tests.worker.original_merge import merge_features

Options = dict[str, Any]
Logits = Callable[[Prompt], torch.Tensor]
MergeFeatures = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]


@dataclass(frozen=True)
class Member:
    """A checkpoint of a model class. ``logits_of`` returns its reference logits, [tokens, vocab]."""

    folder: Path
    logits_of: Logits

    @property
    def image_layout(self) -> ImageLayout:
        return read_config(self.folder).image_layout()


def make_member(name: str, number: int, folder: Path) -> Member:
    """Write a checkpoint of the class ``name``, with sizes and weights derived from the seed ``number``."""
    return CLASSES[name](np.random.default_rng([zlib.crc32(name.encode()), number]), folder, number)


def _options(rng: np.random.Generator, *, groups: list[int], kind: str = "llama", **text: Any) -> Options:
    """Return random decoder and tower sizes. ``groups`` lists the possible ratios of query to key heads."""
    num_key_heads = int(rng.integers(1, 4))
    num_heads = num_key_heads * int(rng.choice(groups))
    width = num_heads * int(rng.choice([8, 12]))
    tower_heads = int(rng.integers(1, 4))
    return {
        "text": {
            "model_type": kind,
            "hidden_size": width,
            "initializer_range": 1 / math.sqrt(width),  # larger weights increase rounding errors
            "intermediate_size": int(rng.integers(20, 90)),
            "num_hidden_layers": int(rng.integers(1, 4)),
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_key_heads,
        }
        | text,
        "vision": {
            "hidden_size": tower_heads * 8,
            "intermediate_size": int(rng.integers(20, 50)),
            "num_hidden_layers": int(rng.integers(2, 5)),
            "num_attention_heads": tower_heads,
            "patch_size": int(rng.choice([7, 14])),
        },
    }


def _with_grid(options: Options, rng: np.random.Generator) -> Options:
    shapes = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    num_shapes = int(rng.integers(2, len(shapes) + 1))
    grid = [[28 * rows, 28 * columns] for rows, columns in shapes[:num_shapes]]
    return options | {"kind": "llava_next", "image_grid_pinpoints": grid}


def _llava_hf(options: Options, folder: Path, seed: int) -> Member:
    reference = write_checkpoint(folder, seed=seed, **options)
    return Member(folder, lambda prompt: reference_logits(reference, prompt))


def _llava_v1(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    """Write LLaVA v1 in the original layout, with one linear layer as the projector."""
    options = _options(rng, groups=[1])
    reference = write_checkpoint(folder, seed=seed, **options)
    original = write_original(folder, folder / "original")
    projector = torch.nn.Linear(options["vision"]["hidden_size"], options["text"]["hidden_size"])
    replace_projector(original, None, torch.nn.Sequential(projector))
    reference.model.multi_modal_projector = projector
    return Member(original, lambda prompt: reference_logits(reference, prompt))


def _llava_1_5(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    return _llava_hf(_options(rng, groups=[1, 2]), folder, seed)


def _llava_1_5_13b(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    """Write LLaVA-1.5 with more heads and layers, because 13B has 40 of each and 7B only 32."""
    options = _options(rng, groups=[1])
    sizes: dict[str, Any] = {
        "hidden_size": 60,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "num_hidden_layers": 4,
    }
    sizes["initializer_range"] = 1 / math.sqrt(60)
    return _llava_hf(options | {"text": options["text"] | sizes}, folder, seed)


def _vicuna(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    return _llava_hf(_with_grid(_options(rng, groups=[1]), rng), folder, seed)


def _mistral(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    window = None if seed % 2 else int(rng.integers(5, 40))  # published checkpoints have no sliding window
    rope = {"rope_type": "default", "rope_theta": 1e6}
    options = _options(rng, groups=[4], kind="mistral", sliding_window=window, rope_parameters=rope)
    return _llava_hf(_with_grid(options, rng), folder, seed)


def _yi_34b(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    """Write a Yi-34B model: Llama with seven query heads per key head and its own RoPE base and EOS token."""
    rope = {"rope_type": "default", "rope_theta": 5e6}
    options = _options(rng, groups=[7], eos_token_id=7, rope_parameters=rope)
    return _llava_hf(_with_grid(options, rng), folder, seed)


def _phi(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    options = _options(rng, groups=[1, 2], kind="phi", partial_rotary_factor=0.5)
    return _llava_hf(options, folder, seed)


def _interleave(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    options = _options(rng, groups=[1, 2], kind="qwen2", tie_word_embeddings=bool(seed % 2))
    options["vision"] |= {"model_type": "siglip_vision_model"}
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    colours = {"image_mean": MEAN.flatten().tolist(), "image_std": STD.flatten().tolist()}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    return _llava_hf(options | features, folder, seed)


def _onevision(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    options = _options(rng, groups=[1, 7], kind="qwen2", tie_word_embeddings=bool(seed % 2))
    options["text"]["max_position_embeddings"] = 2048
    options["vision"] |= {"model_type": "siglip_vision_model"}
    colours = {"image_mean": MEAN.flatten().tolist(), "image_std": STD.flatten().tolist()}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    grid = [[28 * rows, 28 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    values = {"vision_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": grid}
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    return _llava_hf(options | features | values | {"kind": "llava_onevision"}, folder, seed)


def _llava_1_5_hd(rng: np.random.Generator, folder: Path, seed: int) -> Member:
    """Write LLaVA-1.5-HD. No checkpoint has been published, so use 1.6 with a different configuration."""
    options = _with_grid(_options(rng, groups=[1]), rng)
    reference = write_checkpoint(folder, seed=seed, **options)
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": "llava", "image_aspect_ratio": "hd"}
    (folder / "config.json").write_text(json.dumps(values))
    layout = read_config(folder).image_layout()
    newline = reference.model.image_newline
    return Member(
        folder,
        lambda prompt: spliced_logits(
            reference, prompt, lambda features, size: _hd_features(features, size, layout, newline)
        ),
    )


def make_merging_member(merge_type: str, number: int, folder: Path) -> Member:
    """Write an original checkpoint with this ``mm_patch_merge_type``. transformers supports only one type."""
    options = _with_grid(_options(np.random.default_rng(number), groups=[1]), np.random.default_rng(number))
    reference = write_checkpoint(folder, seed=number, **options)
    newline = reference.model.image_newline
    original = write_original(folder, folder / "original", merge_type=merge_type)
    layout = read_config(original).image_layout()
    return Member(
        original,
        lambda prompt: spliced_logits(
            reference, prompt, lambda features, size: merge_features(features, size, layout, newline)
        ),
    )


CLASSES = {
    "v1, linear projector": _llava_v1,
    "1.5": _llava_1_5,
    "1.5, 13B": _llava_1_5_13b,
    "1.6, vicuna": _vicuna,
    "1.6, mistral": _mistral,
    "1.6, 34B": _yi_34b,
    "1.5, Phi": _phi,
    "llava-interleave": _interleave,
    "OneVision": _onevision,
    "1.5-HD": _llava_1_5_hd,
}


@torch.inference_mode()
def spliced_logits(reference: Reference, prompt: Prompt, merge: MergeFeatures) -> torch.Tensor:
    """Return the logits of transformers' decoder for image features that ``merge`` assembles.

    Its arguments are the features of the tiles, [tiles, patches, hidden], and the image size.
    """
    x = reference.get_input_embeddings()(torch.tensor(prompt.token_ids)).clone()
    for start, tiles, size in zip(prompt.image_starts, prompt.pixels, prompt.sizes, strict=True):
        states = reference.model.vision_tower(normalized(tiles), output_hidden_states=True).hidden_states
        features = reference.model.multi_modal_projector(states[-2][:, 1:])
        packed = merge(features, size)
        x[start : start + len(packed)] = packed
    logits: torch.Tensor = reference(inputs_embeds=x[None]).logits
    return logits[0]


def _hd_features(
    features: torch.Tensor, size: tuple[int, int], layout: ImageLayout, newline: torch.Tensor
) -> torch.Tensor:
    """Return the global view and all rows of patches that show the image, with a newline after each row."""
    canvas = best_resolution(size, layout.grid)
    shown = np.zeros(canvas[::-1], dtype=bool)
    (width, height), side = size_on_canvas(size, canvas), layout.side
    left, top = (canvas[0] - width) // 2, (canvas[1] - height) // 2
    shown[top : top + height, left : left + width] = True
    rows, patch = list(features[0]), side // layout.patches_per_side
    for y in range(0, canvas[1], patch):
        if not shown[y : y + patch].any():
            continue
        for x in range(0, canvas[0], patch):
            if shown[y : y + patch, x : x + patch].any():
                tile = 1 + (y // side) * (canvas[0] // side) + x // side
                within = (y % side) // patch * layout.patches_per_side + (x % side) // patch
                rows.append(features[tile, within])
        rows.append(newline)
    return torch.stack(rows)
