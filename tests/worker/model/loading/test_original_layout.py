"""The original repository's checkpoints: llava-hf's numbers, and what llava-hf has no slot for."""

from __future__ import annotations

import json
from pathlib import Path

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
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision

from tests.worker.checkpoints import LLAVA_INTERLEAVE, LLAVA_NEXT_MISTRAL, MEAN, STD, write_checkpoint
from tests.worker.layouts import replace_projector, write_hf, write_original

CPU = torch.device("cpu")


def load(folder: Path, tower: Path | None = None) -> Llava:
    config = read_config(folder, tower)
    image = read_image_config(folder, tower, vision=config.vision_config)
    model = Llava(config, image, precision=choose_precision("fp32", CPU), device=CPU)
    load_weights(model, folder, vision_tower=tower)
    return model


def assert_same(one: Llava, other: Llava) -> None:
    """Equal weights in equal architectures: equal logits."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for part in ("text_config", "vision_config", "feature_layers", "projector_depth", "is_tied"):
        assert getattr(one.config, part) == getattr(other.config, part)
    assert one.config.tokens_per_tile == other.config.tokens_per_tile
    assert one.config.image_layout() == other.config.image_layout()


@pytest.mark.parametrize(
    "options", [{}, LLAVA_NEXT_MISTRAL, LLAVA_INTERLEAVE], ids=["1.5", "1.6 mistral", "qwen2 and siglip"]
)
def test_both_layouts_give_the_same_model_both_ways(tmp_path: Path, options: dict) -> None:
    hf, tower = tmp_path / "hf", tmp_path / "tower"
    hf.mkdir()
    write_checkpoint(hf, **options)
    expected = load(hf)

    whole = write_original(hf, tmp_path / "whole")
    split = write_original(hf, tmp_path / "split", tower=tower)

    assert_same(load(whole), expected)
    assert_same(load(split, tower), expected)
    assert_same(load(write_hf(whole, tmp_path / "back", like=hf)), expected)


def test_a_checkpoint_without_its_tower_says_what_is_to_be_given(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    split = write_original(tmp_path, tmp_path / "split", tower=tmp_path / "tower")

    with pytest.raises(CheckpointError, match="'somewhere/a-small-tower' is not known here: give its folder"):
        load(split)

    config = json.loads((split / "config.json").read_text())
    vision = json.loads((tmp_path / "tower" / "config.json").read_text())
    (split / "config.json").write_text(json.dumps(config | {"vision_config": vision}))
    with pytest.raises(CheckpointError, match="does not hold the weights of its vision tower"):
        load(split)


@pytest.mark.parametrize("kind", ["linear", None, "identity", "mlp3x_gelu"])
def test_projectors_that_llava_hf_lacks_equal_a_plain_one(tmp_path: Path, kind: str | None) -> None:
    reference = write_checkpoint(tmp_path, text={"hidden_size": 24, "num_attention_heads": 2})
    folder = write_original(tmp_path, tmp_path / "original")
    torch.manual_seed(1)
    layers = {"identity": 0, "mlp3x_gelu": 3}.get(kind, 1)
    projector = torch.nn.Sequential(*[torch.nn.Linear(24, 24) for _ in range(layers)])
    replace_projector(folder, kind, projector)
    tiles = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8))

    ours = load(folder).encode(tiles)

    pixels = (tiles.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    with torch.inference_mode():
        x = reference.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        for index, layer in enumerate(projector):
            x = layer(torch.nn.functional.gelu(x) if index else x)
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=0)


# What liuhaotian/llava-v1.5-7b's config.json says, as far as a server is concerned.
LLAVA_1_5_7B = {
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
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def read(folder: Path, **values: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(LLAVA_1_5_7B | values))
    return read_config(folder)


def test_published_original_is_vicuna_behind_clip_with_576_tokens(tmp_path: Path) -> None:
    config = read(tmp_path)

    assert (config.text_config.model_type, config.text_config.vocab_size) == ("llama", 32000)
    assert (config.tokens_per_tile, config.feature_layers, config.projector_depth) == (576, [23], 2)
    assert config.image_layout("crop").fit == "pad"


def test_the_first_llava_has_one_linear_layer_and_its_own_name_for_itself(tmp_path: Path) -> None:
    values = {"model_type": "llava", "mm_projector_type": None, "mm_use_im_start_end": True}
    config = read(tmp_path, **values, mm_vision_tower="/disk/of/somebody/clip-vit-large-patch14/")

    assert (config.projector_depth, config.tokens_per_tile, config.mm_use_im_start_end) == (1, 256, True)


@pytest.mark.parametrize(("ratio", "fit"), [("pad", "pad"), ("square", "crop"), (None, "crop")])
def test_pictures_are_padded_only_where_the_original_pads_them(tmp_path: Path, ratio, fit) -> None:
    assert read(tmp_path, image_aspect_ratio=ratio).image_layout("pad").fit == fit


@pytest.mark.parametrize(("ratio", "fit"), [("pad", "pad"), ("square", "squash"), (None, "squash")])
def test_what_is_left_to_siglips_processor_is_squashed(tmp_path: Path, ratio, fit) -> None:
    tower = {"model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384"}
    assert read(tmp_path, image_aspect_ratio=ratio, **tower).image_layout("crop").fit == fit


@pytest.mark.parametrize("pinpoints", [PINPOINTS, str(PINPOINTS)])
def test_image_grids_are_width_first_in_the_original(tmp_path: Path, pinpoints: object) -> None:
    values = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    layout = read(tmp_path, **values, image_grid_pinpoints=pinpoints).image_layout()

    assert (layout.fit, layout.grid) == ("anyres", tuple(map(tuple, PINPOINTS)))


def test_siglip_by_name_has_no_class_token_and_its_own_colours(tmp_path: Path) -> None:
    config = read(tmp_path, model_type="llava_qwen", mm_vision_tower="google/siglip-so400m-patch14-384")
    image = read_image_config(tmp_path, vision=config.vision_config)

    assert (config.text_config.model_type, config.tokens_per_tile) == ("qwen2", 729)
    assert image.image_mean == image.image_std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"model_type": "llava_mpt"}, "model_type is 'llava_mpt'"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type is 'resampler'"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature is 'all'"),
        ({"mm_vision_tower": "eva-clip"}, "'eva-clip' is not known here"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type is None"),
        (
            {
                "image_aspect_ratio": "anyres",
                "mm_patch_merge_type": "spatial_unpad",
                "image_grid_pinpoints": [3],
            },
            r"image_grid_pinpoints is \[3\]",
        ),
        (
            {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
            "image grid .* is not made of tiles",
        ),
        ({"mm_projector_type": "identity"}, "no projector between features of 1024 and a decoder of 4096"),
    ],
)
def test_what_is_not_served_is_named(tmp_path: Path, values: dict, what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        read(tmp_path, **values)


def test_a_tower_folder_may_hold_a_whole_clip(tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14}
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    (tmp_path / "config.json").write_text(json.dumps(LLAVA_1_5_7B | {"mm_vision_tower": "unheard-of"}))

    assert read_config(tmp_path, tower).tokens_per_tile == 576
    with pytest.raises(CheckpointError, match="no folder of a vision tower"):
        read_config(tmp_path, tmp_path / "elsewhere")
