"""Checkpoints in the original layout are supported, including options that llava-hf does not support."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.model.config.model_config import (
    CheckpointError,
    ModelConfig,
    read_config,
    read_image_config,
)
from llava_worker.model.llava import Llava

from tests.worker.checkpoints import (
    LLAVA_INTERLEAVE,
    LLAVA_NEXT_MISTRAL,
    LLAVA_ONEVISION,
    MEAN,
    STD,
    write_checkpoint,
)
from tests.worker.layouts import replace_projector, write_hf, write_original
from tests.worker.model.load_model import assert_same_weights, load_model


def assert_same_model(actual: Llava, expected: Llava) -> None:
    """Assert that two models have equal weights and the same architecture, so their logits are equal, too."""
    assert_same_weights(actual, expected)
    for part in ("text_config", "vision_config", "feature_layers", "projector_depth", "is_tied"):
        assert getattr(actual.config, part) == getattr(expected.config, part)
    assert actual.config.tokens_per_tile == expected.config.tokens_per_tile
    # Sizes are rounded as in the implementation of each layout.
    layout, expected_layout = actual.config.image_layout(), expected.config.image_layout()
    assert replace(layout, rounds_sizes=True) == replace(expected_layout, rounds_sizes=True)


@pytest.mark.parametrize(
    "options",
    [{}, LLAVA_NEXT_MISTRAL, LLAVA_INTERLEAVE, LLAVA_ONEVISION],
    ids=["1.5", "1.6 mistral", "qwen2 and siglip", "onevision"],
)
def test_a_model_is_the_same_in_both_layouts(tmp_path: Path, options: dict[str, Any]) -> None:
    hf, tower = tmp_path / "hf", tmp_path / "tower"
    hf.mkdir()
    write_checkpoint(hf, **options)
    expected = load_model(hf)

    whole = write_original(hf, tmp_path / "whole")
    split = write_original(hf, tmp_path / "split", tower=tower)

    assert_same_model(load_model(whole), expected)
    assert_same_model(load_model(split, tower=tower), expected)
    assert_same_model(load_model(write_hf(whole, tmp_path / "back", like=hf)), expected)


def test_vip_llava_is_the_same_in_both_layouts(tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    hf.mkdir()
    write_checkpoint(hf, kind="vipllava", vision={"num_hidden_layers": 12})
    whole = write_original(hf, tmp_path / "whole")

    assert_same_model(load_model(whole), load_model(hf))
    assert load_model(whole).config.projector_layernorm_eps == 1e-5

    config = read(tmp_path, mm_vision_tower="clip_4layers_336")
    assert (config.feature_layers, config.feature_size) == ([23, 20, 17, 14, 6], 5 * 1024)


def test_a_checkpoint_without_a_vision_tower_requires_the_tower_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    split = write_original(tmp_path, tmp_path / "split", tower=tmp_path / "tower")

    with pytest.raises(
        CheckpointError, match="'somewhere/a-small-tower' is not recognized. Set vision_tower"
    ):
        load_model(split)

    config = json.loads((split / "config.json").read_text())
    vision = json.loads((tmp_path / "tower" / "config.json").read_text())
    (split / "config.json").write_text(json.dumps(config | {"vision_config": vision}))
    with pytest.raises(CheckpointError, match="does not contain the weights of its vision tower"):
        load_model(split)


@pytest.mark.parametrize(
    ("kind", "num_layers"), [("linear", 1), (None, 1), ("identity", 0), ("mlp3x_gelu", 3)]
)
def test_projectors_that_llava_hf_does_not_support_equal_a_reference(
    tmp_path: Path, kind: str | None, num_layers: int
) -> None:
    reference: Any = write_checkpoint(tmp_path, text={"hidden_size": 24, "num_attention_heads": 2})
    folder = write_original(tmp_path, tmp_path / "original")
    torch.manual_seed(1)
    projector = torch.nn.Sequential(*[torch.nn.Linear(24, 24) for _ in range(num_layers)])
    replace_projector(folder, kind, projector)
    tiles = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8))

    actual = load_model(folder).encode(tiles)

    pixels = (tiles.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    with torch.inference_mode():
        x = reference.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        for index, layer in enumerate(projector):
            x = layer(torch.nn.functional.gelu(x) if index else x)
    torch.testing.assert_close(actual, x, atol=1e-5, rtol=0)


# config.json of liuhaotian/llava-v1.5-7b, without the training options.
LLAVA_1_5_7B: dict[str, Any] = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "eos_token_id": 2,
    "hidden_size": 4096,
    "image_aspect_ratio": "pad",
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava_llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "vocab_size": 32000,
}
SIGLIP: dict[str, Any] = {
    "model_type": "llava_qwen",
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
}
ANYRES: dict[str, Any] = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def read(folder: Path, **values: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(LLAVA_1_5_7B | values))
    return read_config(folder)


def test_the_published_llava_1_5_is_vicuna_with_clip_and_576_tokens(tmp_path: Path) -> None:
    config = read(tmp_path)

    assert (config.text_config.model_type, config.text_config.vocab_size) == ("llama", 32000)
    assert (config.tokens_per_tile, config.feature_layers, config.projector_depth) == (576, [23], 2)
    assert config.image_layout("crop").fit == "pad"


def test_the_first_llava_has_one_linear_layer_and_its_own_model_type(tmp_path: Path) -> None:
    values = {"model_type": "llava", "mm_projector_type": None, "mm_use_im_start_end": True}
    config = read(tmp_path, **values, mm_vision_tower="/home/user/clip-vit-large-patch14/")

    assert (config.projector_depth, config.tokens_per_tile, config.mm_use_im_start_end) == (1, 256, True)


def test_images_are_padded_only_if_the_original_pads_them(tmp_path: Path) -> None:
    for ratio, fit in (("pad", "pad"), ("square", "crop"), (None, "crop")):
        assert read(tmp_path, image_aspect_ratio=ratio).image_layout("pad").fit == fit


def test_images_for_siglip_are_squashed_unless_padded(tmp_path: Path) -> None:
    for ratio, fit in (("pad", "pad"), ("square", "squash"), (None, "squash")):
        assert read(tmp_path, image_aspect_ratio=ratio, **SIGLIP).image_layout("crop").fit == fit


def test_image_grids_are_width_first_in_the_original_layout(tmp_path: Path) -> None:
    for pinpoints in (PINPOINTS, str(PINPOINTS)):
        layout = read(tmp_path, **ANYRES, image_grid_pinpoints=pinpoints).image_layout()

        assert (layout.fit, layout.grid) == ("anyres", tuple(map(tuple, PINPOINTS)))


# config.json of lmms-lab/llava-onevision-qwen2-7b-ov, without the training options.
ONEVISION: dict[str, Any] = SIGLIP | {
    "architectures": ["LlavaQwenForCausalLM"],
    "hidden_size": 3584,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_resampler_type": None,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


def test_the_published_onevision_has_36_grids_and_reduces_large_ones_to_9_tiles(tmp_path: Path) -> None:
    config = read(tmp_path, **ONEVISION)
    layout = config.image_layout()

    sides = range(384, 2305, 384)
    assert layout.grid == tuple((width, height) for width in sides for height in sides)
    assert (layout.merge, layout.max_tiles, layout.rounds_sizes) == ("spatial_unpad", 9, False)
    assert (layout.splits_several_images, layout.single_tile_fit) == (False, "pad")
    assert (config.feature_layers, config.tokens_per_tile, config.has_image_newline) == ([26], 729, True)


@pytest.mark.parametrize("merge_type", ["flat", "spatial", "spatial_unpad", None])
def test_the_merge_type_is_flat_unless_specified(tmp_path: Path, merge_type: str | None) -> None:
    values = ANYRES | {"image_grid_pinpoints": PINPOINTS, "mm_patch_merge_type": merge_type}
    config = read(tmp_path, **values)

    assert config.image_layout().merge == (merge_type or "flat")
    assert config.has_image_newline is (merge_type == "spatial_unpad")


def test_siglip_by_name_has_no_class_token_and_its_own_mean_and_std(tmp_path: Path) -> None:
    config = read(tmp_path, **SIGLIP)
    image = read_image_config(tmp_path, vision=config.vision_config)

    assert (config.text_config.model_type, config.tokens_per_tile) == ("qwen2", 729)
    assert image.image_mean == image.image_std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "llava_mpt"}, "model_type is 'llava_mpt'"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type is 'resampler'"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature is 'all'"),
        ({"mm_vision_tower": "eva-clip"}, "'eva-clip' is not recognized"),
        (ANYRES | {"mm_patch_merge_type": "maxpool2x2"}, "'maxpool2x2'; .* flat, spatial, spatial_unpad"),
        ({"image_aspect_ratio": "anyres_max"}, "'anyres_max' is not supported. .* for example anyres_max_9"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type is 'perceiver'"),
        (ANYRES | {"image_grid_pinpoints": "(1x1),...,(99x99)"}, r"image_grid_pinpoints is '\(1x1\)"),
        (ANYRES | {"image_grid_pinpoints": [3]}, r"image_grid_pinpoints is \[3\]"),
        (ANYRES, "Image grid .* is not supported"),
        ({"mm_projector_type": "identity"}, "no projector, but its feature size 1024 differs .* 4096"),
    ],
)
def test_unsupported_options_are_named_in_the_error(
    tmp_path: Path, values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read(tmp_path, **values)


def test_a_tower_folder_may_contain_a_whole_clip_model(tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14}
    vision["num_attention_heads"] = 16
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    (tmp_path / "config.json").write_text(json.dumps(LLAVA_1_5_7B | {"mm_vision_tower": "unknown-tower"}))

    assert read_config(tmp_path, tower).tokens_per_tile == 576
    with pytest.raises(CheckpointError, match="Set vision_tower to a folder that contains a vision tower"):
        read_config(tmp_path, tmp_path / "elsewhere")
