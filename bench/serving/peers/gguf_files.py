"""Write a generated checkpoint as two GGUF files, as llama.cpp requires: the decoder, and the vision tower.

    python gguf_files.py CHECKPOINT MODEL.gguf MMPROJ.gguf      (in an environment with gguf)

All matrices are stored in Q8_0, except that of the patch embedding (F16). The other tensors are stored in
F32. The format and the names of tensors and fields are those of llama.cpp (gguf-py/gguf/constants.py,
tools/mtmd/clip-impl.h). Tensors are read and written one at a time.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# llama.cpp inserts a marker for the image into the text, and adds the BOS token itself.
_TEMPLATE = (
    f'{{{{- "{_SYSTEM} " -}}}}'
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] + ' ASSISTANT:' -}}"
    "{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_DECODER = {
    "language_model.model.embed_tokens.weight": "token_embd.weight",
    "language_model.model.norm.weight": "output_norm.weight",
    "language_model.lm_head.weight": "output.weight",
}
_TOWER_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_TOWER = {
    "vision_tower.vision_model.embeddings.class_embedding": "v.class_embd",
    "vision_tower.vision_model.embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "vision_tower.vision_model.embeddings.position_embedding.weight": "v.position_embd.weight",
    "vision_tower.vision_model.pre_layrnorm": "v.pre_ln",  # the misspelling comes from CLIP
    "vision_tower.vision_model.post_layernorm": "v.post_ln",
    "multi_modal_projector.linear_1": "mm.0",
    "multi_modal_projector.linear_2": "mm.2",
}


def main() -> None:
    checkpoint, model, tower = map(Path, sys.argv[1:])
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tensors = dict(_read_tensors(checkpoint))
    _write(
        model, "llama", tensors, decoder_name, lambda writer: _describe_decoder(writer, config, checkpoint)
    )
    _write(tower, "clip", tensors, tower_name, lambda writer: _describe_tower(writer, config, checkpoint))


def decoder_name(name: str) -> str | None:
    """Return llama.cpp's name for a tensor of the decoder, or None for other tensors."""
    return _DECODER.get(name) or _layer_name(name, "language_model.model.layers.", "blk", _LAYER)


def tower_name(name: str) -> str | None:
    """Return llama.cpp's name for a tensor of the vision tower or projector, or None for other tensors."""
    module, _, kind = name.rpartition(".")
    if module in _TOWER:
        return f"{_TOWER[module]}.{kind}"
    prefix = "vision_tower.vision_model.encoder.layers."
    return _TOWER.get(name) or _layer_name(name, prefix, "v.blk", _TOWER_LAYER)


def _layer_name(name: str, prefix: str, new_prefix: str, parts: dict[str, str]) -> str | None:
    if not name.startswith(prefix):
        return None
    layer, _, rest = name.removeprefix(prefix).partition(".")
    part, _, kind = rest.rpartition(".")
    return f"{new_prefix}.{layer}.{parts[part]}.{kind}"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of the checkpoint, in bf16, from byte ``begin`` on."""

    content: mmap.mmap
    begin: int
    shape: tuple[int, ...]

    def read(self) -> Floats:
        halves = np.frombuffer(self.content, np.uint16, math.prod(self.shape), self.begin)
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)


def _read_tensors(checkpoint: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the names and locations of all tensors.

    Format: https://github.com/huggingface/safetensors#format
    """
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{name} is in {entry['dtype']}. Generate the checkpoint in bf16.")
            yield name, Stored(content, start + entry["data_offsets"][0], tuple(entry["shape"]))


def _write(
    path: Path,
    architecture: str,
    tensors: dict[str, Stored],
    name_of: Callable[[str], str | None],
    describe: Callable[[gguf.GGUFWriter], int],
) -> None:
    """Write one file. ``describe`` adds the fields and returns the number of attention heads."""
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, architecture)
    heads = describe(writer)
    chosen = {new: stored for name, stored in tensors.items() if (new := name_of(name))}
    for name, stored in chosen.items():
        kind = _type(name, stored.shape)
        shape = gguf.quant_shape_to_byte_shape(stored.shape, kind)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, stored in chosen.items():
        data = stored.read()
        if name.startswith("blk.") and (".attn_q." in name or ".attn_k." in name):
            data = _rotated(data, heads)
        writer.write_tensor_data(gguf.quantize(data, _type(name, stored.shape)))
    writer.close()
    unfinished.replace(path)


def _type(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    if name == "v.patch_embd.weight":
        return gguf.GGMLQuantizationType.F16
    is_matrix = len(shape) == 2 and name != "v.position_embd.weight"
    return gguf.GGMLQuantizationType.Q8_0 if is_matrix else gguf.GGMLQuantizationType.F32


def _rotated(data: Floats, heads: int) -> Floats:
    """Reorder the rows of a query or key matrix for llama.cpp's rotary embedding of adjacent pairs."""
    halves = data.reshape(heads, 2, data.shape[0] // heads // 2, data.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(data.shape))


def _describe_decoder(writer: gguf.GGUFWriter, config: dict[str, Any], checkpoint: Path) -> int:
    text = config["text_config"]
    writer.add_name(checkpoint.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_theta"])
    writer.add_rope_dimension_count(text["hidden_size"] // text["num_attention_heads"])
    writer.add_vocab_size(text["vocab_size"])
    _describe_tokenizer(writer, checkpoint)
    return int(text["num_attention_heads"])


def _describe_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path) -> None:
    """Add the vocabulary. The scores make llama.cpp merge pieces in the order of the checkpoint's merges."""
    document = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {entry["content"] for entry in document["added_tokens"]}
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_types([_token_type(token, special) for token in tokens])
    writer.add_bos_token_id(vocabulary["<s>"])
    writer.add_eos_token_id(vocabulary["</s>"])
    writer.add_unk_token_id(vocabulary["<unk>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(_TEMPLATE)


def _token_type(token: str, special: Iterable[str]) -> gguf.TokenType:
    if token in special:
        return gguf.TokenType.UNKNOWN if token == "<unk>" else gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if token.startswith("<0x") else gguf.TokenType.NORMAL


def _describe_tower(writer: gguf.GGUFWriter, config: dict[str, Any], checkpoint: Path) -> int:
    """Add the fields of the vision tower. llama.cpp omits the last of the tower's layers itself."""
    vision = config["vision_config"]
    images = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    writer.add_name(checkpoint.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_image_mean(images["image_mean"])
    writer.add_vision_image_std(images["image_std"])
    writer.add_vision_use_gelu(False)
    return int(vision["num_attention_heads"])


if __name__ == "__main__":
    main()
