"""Export the trained model in the llava-hf layout, which `transformers` and the worker load."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import Tensor

from tiny.conversations import SYSTEM
from tiny.drawing import GRID, IMAGE_SIZE, PATCH
from tiny.model import TEXT
from tiny.tokenizer import BOS, EOS, IMAGE, PAD, SIZE, build
from tiny.tower import VISION

__all__ = ["export_model"]

_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]
# `vicuna_v1` of LLaVA-1.5. A system message replaces the default system prompt.
_CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set first = messages[0]['content'] -%}
{%- set system = first if first is string else first[0]['text'] -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = SYSTEM -%}
{%- set turns = messages -%}
{%- endif -%}
{{- system + ' ' if system else '' -}}
{%- for message in turns -%}
{{- 'USER: ' if message['role'] == 'user' else ' ' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- ' ASSISTANT:' if message['role'] == 'user' else eos_token -}}
{%- endfor -%}
"""


def export_model(state: dict[str, Tensor], folder: Path) -> None:
    """Write the model folder.

    Each file is written under a temporary name and then renamed, so other processes never see a partial file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": _config(),
        "generation_config.json": {
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "max_new_tokens": 96,
        },
        "preprocessor_config.json": _preprocessor(),
        "processor_config.json": _processor(),
        "tokenizer_config.json": _tokenizer_config(),
        "special_tokens_map.json": _special_tokens(),
    }
    texts = {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
    texts["chat_template.jinja"] = _CHAT_TEMPLATE.replace("SYSTEM", json.dumps(SYSTEM))
    for name, text in texts.items():
        (folder / f"{name}.tmp").write_text(text)
    tokenizer = build()
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in ("<image>", "<pad>")]
    )
    assert tokenizer.token_to_id("<image>") == IMAGE
    assert tokenizer.token_to_id("<pad>") == PAD
    tokenizer.save(str(folder / "tokenizer.json.tmp"))
    save_file(_checkpoint(state), str(folder / "model.safetensors.tmp"), metadata={"format": "pt"})
    for path in folder.glob("*.tmp"):
        path.chmod(0o644)
        os.replace(path, path.with_suffix(""))


def _checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in fp16, without the teacher.

    The tower's last layer, which LLaVA does not use, is added with weights that make it an identity function.
    """
    weights = {
        name: value.half().contiguous() for name, value in state.items() if not name.startswith("teacher.")
    }
    layers = "vision_tower.vision_model.encoder.layers."
    for name in [name for name in weights if name.startswith(f"{layers}0.")]:
        is_norm = "layer_norm" in name and name.endswith("weight")
        blank = torch.ones_like(weights[name]) if is_norm else torch.zeros_like(weights[name])
        weights[name.replace(f"{layers}0.", f"{layers}{VISION.layers}.")] = blank
    weights["vision_tower.vision_model.post_layernorm.weight"] = torch.ones(VISION.width).half()
    weights["vision_tower.vision_model.post_layernorm.bias"] = torch.zeros(VISION.width).half()
    return weights


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "float16",
        "image_seq_length": GRID * GRID,
        "image_token_index": IMAGE,
        "ignore_index": -100,
        "pad_token_id": PAD,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": False,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": SIZE,
            "hidden_size": TEXT.width,
            "intermediate_size": TEXT.inner,
            "num_hidden_layers": TEXT.layers,
            "num_attention_heads": TEXT.heads,
            "num_key_value_heads": TEXT.heads,
            "head_dim": TEXT.width // TEXT.heads,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "dtype": "float16",
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": VISION.width,
            "intermediate_size": VISION.inner,
            "num_hidden_layers": VISION.layers + 1,
            "num_attention_heads": VISION.heads,
            "hidden_act": "quick_gelu",
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "projection_dim": VISION.width,
            "layer_norm_eps": 1e-5,
            "dtype": "float16",
        },
    }


def _preprocessor() -> dict[str, Any]:
    return {
        "image_processor_type": "LlavaImageProcessor",
        "do_convert_rgb": True,
        "do_pad": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
    }


def _processor() -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
    }


def _special_tokens() -> dict[str, str]:
    return {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "image_token": "<image>",
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "model_max_length": 2048,
        "padding_side": "left",
        "add_bos_token": False,
        "add_prefix_space": None,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {"image_token": "<image>"},
        **_special_tokens(),
    }
