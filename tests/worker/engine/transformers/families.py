"""Tiny random checkpoints of six vision-language families, in the layout of transformers.

Tokenizers are built here: every byte or letter is a token. Weights are large enough that greedy output
depends on the image. It consists of printable ASCII characters: the logits of all other tokens are 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_worker.engine.transformers.build import is_supported_version
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

__all__ = ["FAMILIES", "write_family"]

Values = dict[str, Any]

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_SMOL = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_PLAIN_IMAGE = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
}


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=_ids(sorted(pre_tokenizers.ByteLevel.alphabet())), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _byte_fallback(special: list[str]) -> Tokenizer:
    letters = [*"\n▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!:", "\n\n", "\n\n\n"]
    vocab = _ids(["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters])
    merges = [("\n", "\n"), ("\n\n", "\n")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ["<pad>", "<eos>", "<bos>", *special]]
    )
    return tokenizer


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _write(
    folder: Path,
    config: Values,
    tokenizer: Tokenizer,
    tokenizer_config: Values,
    processor: Values,
    image_processor: Values,
    template: str | None,
) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder.mkdir(parents=True, exist_ok=True)
    text = {"vocab_size": tokenizer.get_vocab_size(), "tie_word_embeddings": False, **config["text_config"]}
    values = {"tie_word_embeddings": False, **config, "text_config": text}
    model_type = values.pop("model_type")
    torch.manual_seed(len(model_type))
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 if "embed" in name else 1.0 / parameter[0].numel() ** 0.5)
        _restrict_output(model.get_output_embeddings().weight, tokenizer)
    model.generation_config.eos_token_id = tokenizer.token_to_id(tokenizer_config["eos_token"])
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer_config.json", base | tokenizer_config)
    _write_json(folder / "preprocessor_config.json", _PLAIN_IMAGE | image_processor)
    _write_json(folder / "processor_config.json", processor)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def _restrict_output(head: torch.Tensor, tokenizer: Tokenizer) -> None:  # [vocab, hidden]
    printable = [
        token_id
        for token, token_id in tokenizer.get_vocab().items()
        if len(token) == 1 and token.isascii() and token.isprintable()
    ]
    rows = head[printable].clone()
    head.zero_()
    head[printable] = rows


def _write_json(path: Path, values: Values) -> None:
    path.write_text(json.dumps(values, indent=1))


def _write_onevision(folder: Path) -> None:
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"])
    config = {
        "model_type": "llava_onevision",
        "text_config": {"model_type": "qwen2", **_TEXT},
        "vision_config": {**_SIGLIP, "vision_use_head": False},
        "image_token_id": tokenizer.token_to_id("<image>"),
        "video_token_id": tokenizer.token_to_id("<video>"),
        "image_grid_pinpoints": [[28, 28], [28, 56], [56, 28], [56, 56]],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    _write(
        folder,
        config,
        tokenizer,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
        },
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 28, "width": 28},
            "image_grid_pinpoints": config["image_grid_pinpoints"],
        },
        _CHATML.replace("IMAGE", "<image>\n"),
    )


def _write_smolvlm(folder: Path) -> None:
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks, *rows])
    config = {
        "model_type": "idefics3",
        "text_config": {"model_type": "llama", **_TEXT, "pad_token_id": 256},
        "vision_config": {
            "model_type": "idefics3_vision",
            **{name: value for name, value in _SIGLIP.items() if name != "model_type"},
        },
        "image_token_id": tokenizer.token_to_id("<image>"),
        "scale_factor": 2,
        "pad_token_id": 256,
    }
    _write(
        folder,
        config,
        tokenizer,
        {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"},
        {"processor_class": "Idefics3Processor", "image_seq_len": 1},
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "do_image_splitting": True,
            "do_pad": True,
            "size": {"longest_edge": 56},
            "max_image_size": {"longest_edge": 28},
        },
        _SMOL,
    )


def _write_qwen2_vl(folder: Path) -> None:
    marks = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks])
    config = {
        "model_type": "qwen2_vl",
        "text_config": {
            "model_type": "qwen2_vl_text",
            **_TEXT,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 64,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": 14,
        },
        **{
            f"{name}_token_id": tokenizer.token_to_id(f"<|{token}|>")
            for name, token in (
                ("image", "image_pad"),
                ("video", "video_pad"),
                ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        },
    }
    _write(
        folder,
        config,
        tokenizer,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        {"processor_class": "Qwen2VLProcessor"},
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 28 * 28, "longest_edge": 84 * 84},
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
        _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


def _write_gemma3(folder: Path) -> None:
    marks = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer = _byte_fallback(marks)
    config = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            **_TEXT,
            "head_dim": 8,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
        "vision_config": {**_SIGLIP, "vision_use_head": False, "image_size": 56},
        "mm_tokens_per_image": 4,
        "boi_token_index": tokenizer.token_to_id("<start_of_image>"),
        "eoi_token_index": tokenizer.token_to_id("<end_of_image>"),
        "image_token_index": tokenizer.token_to_id("<image_soft_token>"),
        "eos_token_id": [1],
    }
    tokens = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    _write(
        folder,
        config,
        tokenizer,
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_special_tokens": tokens,
        },
        {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}},
        _GEMMA,
    )


def _write_paligemma(folder: Path) -> None:
    locations = [f"<loc{index:0>4}>" for index in range(1024)]
    tokenizer = _byte_fallback(["<image>", *locations, *(f"<seg{index:0>3}>" for index in range(128))])
    config = {
        "model_type": "paligemma",
        "text_config": {
            "model_type": "gemma",
            **_TEXT,
            "head_dim": 8,
            "hidden_activation": "gelu_pytorch_tanh",
        },
        "vision_config": {**_SIGLIP, "projection_dim": 64, "vision_use_head": False},
        "image_token_index": tokenizer.token_to_id("<image>"),
        "projection_dim": 64,
        "hidden_size": 64,
        "eos_token_id": 1,
    }
    _write(
        folder,
        config,
        tokenizer,
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_special_tokens": {"image_token": "<image>"},
        },
        {"processor_class": "PaliGemmaProcessor"},
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 28, "width": 28},
            "image_seq_length": 4,
        },
        None,
    )


def _write_internvl(folder: Path) -> None:
    marks = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks])
    config = {
        "model_type": "internvl",
        "text_config": {"model_type": "qwen2", **_TEXT},
        "vision_config": {
            **{name: value for name, value in _SIGLIP.items() if name != "model_type"},
            "image_size": [28, 28],
            "patch_size": [14, 14],
        },
        "image_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "image_seq_length": 1,
        "downsample_ratio": 0.5,
    }
    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    _write(
        folder,
        config,
        tokenizer,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": tokens},
        {"processor_class": "InternVLProcessor", "image_seq_length": 1},
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 28, "width": 28},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
        },
        _CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )


FAMILIES: dict[str, Callable[[Path], None]] = {
    "llava_onevision": _write_onevision,
    "smolvlm": _write_smolvlm,
    "qwen2_vl": _write_qwen2_vl,
    "gemma3": _write_gemma3,
    "paligemma": _write_paligemma,
    "internvl": _write_internvl,
}


def write_family(name: str, folder: Path) -> Path:
    """Write the checkpoint of a family and return its folder.

    Skip the test if the installed version of transformers is too old for the engine.
    """
    if not is_supported_version(metadata.version("transformers")):
        pytest.skip("the version of transformers is too old for the engine")
    FAMILIES[name](folder)
    return folder
