"""config.json determines the model. Missing fields have the same defaults as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llava_worker.model.config.model_config import (
    CheckpointError,
    read_config,
    read_eos_ids,
    read_image_config,
)
from transformers import AutoConfig

# config.json of llava-hf/llava-1.5-7b-hf.
LLAVA_1_5_7B: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def write(folder: Path, name: str = "config.json", **values: Any) -> Path:
    (folder / name).write_text(json.dumps(values))
    return folder


CONFIGS: dict[str, dict[str, Any]] = {
    "bare": {"model_type": "llava"},
    "as published": LLAVA_1_5_7B,
    "mistral": {"model_type": "llava_next", "text_config": {"model_type": "mistral"}},
    "onevision": {"model_type": "llava_onevision", "text_config": {"eos_token_id": 7}},
    "onevision with parts": {
        "model_type": "llava_onevision",
        "text_config": {"hidden_size": 896, "eos_token_id": 7},
        "vision_config": {"hidden_size": 1152, "image_size": 384},
    },
    "qwen2 and siglip": {
        "model_type": "llava",
        "text_config": {"model_type": "qwen2", "eos_token_id": 5},
        "vision_config": {"model_type": "siglip_vision_model"},
        "vision_feature_select_strategy": "full",
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    actual = read_config(write(tmp_path, **CONFIGS[name]))
    expected = AutoConfig.from_pretrained(tmp_path)

    for field in type(actual.text_config).model_fields.keys() & vars(expected.text_config).keys() - {
        "layer_types"
    }:
        assert getattr(actual.text_config, field) == getattr(expected.text_config, field), field
    for field in type(actual.vision_config).model_fields:
        assert getattr(actual.vision_config, field) == getattr(expected.vision_config, field), field
    assert actual.image_token_id == expected.image_token_index
    assert actual.text_config.rope.rope_theta == expected.text_config.rope_parameters["rope_theta"]


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision", "vipllava"])
def test_defaults_of_the_model_type_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    actual = read_config(write(tmp_path, model_type=kind))
    expected = AutoConfig.from_pretrained(tmp_path)

    layers = expected.vision_feature_layer
    assert actual.vision_feature_layer == (layers if isinstance(layers, int) else tuple(layers))
    strategy = getattr(expected, "vision_feature_select_strategy", "default")  # fixed for vipllava
    assert actual.vision_feature_select_strategy == strategy
    assert actual.projector_layernorm_eps == getattr(expected, "projector_layernorm_eps", None)
    grid = getattr(expected, "image_grid_pinpoints", ())
    assert actual.image_layout().grid == tuple((width, height) for height, width in grid)
    ratio = getattr(expected, "vision_aspect_ratio", "")
    assert actual.image_layout().max_tiles == (int(ratio.removeprefix("anyres_max_")) if ratio else None)


def test_published_llava_is_vicuna_with_clip_and_576_tokens(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, **LLAVA_1_5_7B))

    assert (config.text_config.hidden_size, config.text_config.num_key_value_heads) == (4096, 32)
    assert config.tokens_per_tile == 576
    assert config.feature_layers == [23]


def test_the_older_spelling_of_rope_parameters_is_supported(tmp_path: Path) -> None:
    text = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    rope = read_config(write(tmp_path, model_type="llava", text_config=text)).text_config.rope

    assert (rope.rope_type, rope.rope_theta, rope.factor) == ("linear", 5e5, 4.0)


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        (
            {"model_type": "bert"},
            "model_type is 'bert'; supported values are 'llava', 'llava_next', .* or 'vipllava'.",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "mamba"}},
            "text_config.model_type is 'mamba'; supported values are 'llama', 'mistral', 'qwen2', 'phi' or "
            "'phi3'.",
        ),
        ({"model_type": "llava", "text_config": {"rope_scaling": {"type": "longrope"}}}, "rope_type"),
        ({"model_type": "llava", "vision_feature_layer": -40}, "vision_feature_layer -40"),
        ({"model_type": "llava", "text_config": [1], "vision_config": 3}, "text_config.*vision_config"),
        (
            {"model_type": "llava_next", "vision_feature_select_strategy": "full"},
            "577 tokens; image grids require a square number",
        ),
        (
            {"model_type": "llava_onevision", "vision_aspect_ratio": "pad"},
            "vision_aspect_ratio is 'pad'; the supported value is anyres_max_<tiles>",
        ),
        ({}, "has no model_type"),
        (
            {"model_type": "llava", "text_config": {"model_type": "phi", "qk_layernorm": True}},
            "text_config.qk_layernorm is True; supported values are False",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "phi3", "partial_rotary_factor": 0.75}},
            "partial_rotary_factor is 0.75; the supported value for a decoder of model_type phi3 is 1",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "phi", "partial_rotary_factor": 0.01}},
            "a head size of 64 result in 0 rotated dimensions",
        ),
        (
            {"model_type": "tinyllava", "connector_type": "qformer"},
            "connector_type is 'qformer'; supported values are linear, identity and mlp<depth>x_gelu",
        ),
        (
            {"model_type": "tinyllava", "connector_type": "linear", "image_aspect_ratio": "anyres"},
            "image_aspect_ratio is 'anyres'; supported values are square, pad",
        ),
        (
            {"model_type": "tinyllava", "connector_type": "linear", "vision_model_name_or_path2": "dino"},
            "vision_model_name_or_path2 is 'dino'; models with two towers are not supported",
        ),
        (
            {"model_type": "tinyllava", "connector_type": "linear", "text_config": {"model_type": "openelm"}},
            "text_config.model_type is 'openelm'",
        ),
    ],
)
def test_an_unsupported_model_is_rejected_with_the_field_name(
    tmp_path: Path, values: dict[str, Any], difference: str
) -> None:
    with pytest.raises(CheckpointError, match=difference):
        read_config(write(tmp_path, **values))


# config.json of tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B, without the training options.
TINYLLAVA_PHI_2: dict[str, Any] = {
    "architectures": ["TinyLlavaForConditionalGeneration"],
    "connector_type": "mlp2x_gelu",
    "hidden_size": 2560,
    "ignore_index": -100,
    "image_aspect_ratio": "square",
    "image_token_index": -200,
    "llm_model_name_or_path": "microsoft/phi-2",
    "model_type": "tinyllava",
    "num_queries": 128,
    "pad_token": "<|endoftext|>",
    "text_config": {
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "hidden_act": "gelu_new",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "phi",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "rope_scaling": None,
        "vocab_size": 51200,
    },
    "tokenizer_model_max_length": 3072,
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "patch",
    "vision_model_name_or_path2": "",
    "vocab_size": 51200,
}


def test_published_tinyllava_is_phi_2_with_siglip_without_its_first_patch(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, **TINYLLAVA_PHI_2))

    text = config.text_config
    assert (text.model_type, text.head_dim, text.rotary_dim, text.layer_norm_eps) == ("phi", 80, 32, 1e-5)
    assert (config.tokens_per_tile, config.feature_layers, config.projector_depth) == (728, [26], 2)
    assert config.image_layout().fit == "squash"
    pixels = read_image_config(tmp_path, vision=config.vision_config)
    assert pixels.image_mean == pixels.image_std == (0.5, 0.5, 0.5)


def test_tensor_parallelism_rejects_fused_projections(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, model_type="llava", text_config={"model_type": "phi3"}))
    with pytest.raises(ValueError, match="tensor_parallel is 2; the supported value .* phi3.* is 1"):
        config.shard(2)
    assert config.shard(1) == config


def test_a_folder_without_a_configuration_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json does not exist"):
        read_config(tmp_path)


def test_a_file_that_is_not_a_json_object_is_rejected(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)

        with pytest.raises(CheckpointError, match="config.json"):
            read_config(tmp_path)


def test_the_generation_config_takes_precedence_for_end_of_sequence_tokens(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, model_type="llava", text_config={"eos_token_id": 7}))
    assert read_eos_ids(tmp_path, config) == {7}

    write(tmp_path, "generation_config.json", eos_token_id=[2, 5])
    assert read_eos_ids(tmp_path, config) == {2, 5}

    write(tmp_path, "generation_config.json", eos_token_id=None)
    assert read_eos_ids(tmp_path, config) == {7}


def test_the_default_end_of_sequence_token_is_that_of_llama(tmp_path: Path) -> None:
    write(tmp_path, "generation_config.json", eos_token_id=None)
    config = read_config(write(tmp_path, model_type="llava", text_config={"eos_token_id": None}))

    assert read_eos_ids(tmp_path, config) == {2}


def test_an_invalid_image_processor_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", image_mean="grey")

    with pytest.raises(CheckpointError, match="image_mean"):
        read_image_config(tmp_path)


def test_the_image_processor_is_read_from_either_file(tmp_path: Path) -> None:
    assert read_image_config(tmp_path).do_pad is None

    write(tmp_path, "processor_config.json", image_processor={"do_pad": False})
    assert read_image_config(tmp_path).do_pad is False

    write(tmp_path, "preprocessor_config.json", do_pad=True, image_mean=[0.5, 0.5, 0.5])
    assert read_image_config(tmp_path).do_pad is True
    assert read_image_config(tmp_path).image_mean == (0.5, 0.5, 0.5)


# The fields of published image processor configurations that determine how images are made square.
LLAVA_1_5_HF: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
}
LLAVA_INTERLEAVE_HF: dict[str, Any] = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 384, "width": 384},
}


@pytest.mark.parametrize(
    ("values", "fit"),
    [
        (LLAVA_1_5_HF, "pad"),
        (LLAVA_1_5_HF | {"do_pad": False}, "crop"),
        (LLAVA_INTERLEAVE_HF, "squash"),
        (LLAVA_INTERLEAVE_HF | {"do_pad": True}, "pad"),
        (LLAVA_1_5_HF | {"size": 336}, "pad"),
        ({"size": {"height": 384, "width": None, "shortest_edge": 384}}, "pad"),
    ],
    ids=["1.5", "1.5, not padded", "interleave", "interleave, padded", "one length", "one side"],
)
def test_the_image_processor_determines_how_images_are_made_square(
    tmp_path: Path, values: dict[str, Any], fit: str
) -> None:
    config = read_config(write(tmp_path, model_type="llava"))
    image = read_image_config(write(tmp_path, "preprocessor_config.json", **values))

    assert image.fit == config.image_layout(image.fit).fit == fit


def test_without_an_image_processor_the_tower_type_determines_the_fit(tmp_path: Path) -> None:
    for tower, fit in (("clip_vision_model", "pad"), ("siglip_vision_model", "squash")):
        config = read_config(write(tmp_path, model_type="llava", vision_config={"model_type": tower}))

        assert read_image_config(tmp_path, vision=config.vision_config).fit == fit
