"""Model folders that an attacker could publish: the bundled tiny model with one malicious change each."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llava_worker

__all__ = ["CASES", "HARMLESS", "MAX_GROWN_BYTES", "TINY", "Hostile", "change_json", "copy_tiny"]

TINY = Path(llava_worker.__file__).parent / "tiny"
MAX_GROWN_BYTES = 256 << 20


@dataclass(frozen=True)
class Hostile:
    """A change to a copy of the tiny model, and the text that the error must contain, as a regex.

    ``max_grown_bytes`` limits the memory of the worker and of each of its child processes.
    """

    change: Callable[[Path], object]
    error: str
    flags: tuple[str, ...] = ()
    max_grown_bytes: int = MAX_GROWN_BYTES


def copy_tiny(folder: Path) -> Path:
    """Copy the tiny model. The weights are a link, because no test changes them in place."""
    folder.mkdir(parents=True)
    for file in TINY.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        elif file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder)
    return folder


def change_json(folder: Path, name: str, path: str, value: Any) -> None:
    """Set the field at a path such as ``text_config.vocab_size``. Create the file if it does not exist."""
    file = folder / name
    values = json.loads(file.read_text()) if file.exists() else {}
    *parents, last = path.split(".")
    target = values
    for key in parents:
        target = target[int(key) if isinstance(target, list) else key]
    target[last] = value
    file.write_text(json.dumps(values))


def _sets(path: str, value: Any, *, file: str = "config.json") -> Callable[[Path], object]:
    return lambda folder: change_json(folder, file, path, value)


def _in_order(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


def _config(path: str, value: Any, error: str = "") -> Hostile:
    return Hostile(_sets(path, value), rf"config\.json .*{error or re.escape(path)}")


def _raw(name: str, text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()

    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return write


def _sparse(name: str, num_bytes: int) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with (folder / name).open("wb") as file:
            file.truncate(num_bytes)

    return write


def _fifo(name: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return write


def _device(name: str, target: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return write


def _header(text: str, *, length: int | None = None, size: int = 1 << 16) -> Callable[[Path], object]:
    """Write a weight file that consists of this header and ``size`` bytes of data."""
    data = text.encode()
    prefix = (len(data) if length is None else length).to_bytes(8, "little")
    return _raw("model.safetensors", prefix + data + bytes(size))


def _tensors(**entries: Any) -> Callable[[Path], object]:
    return _header(json.dumps(entries))


def _entry(shape: Any, offsets: Any = (0, 4), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _index(weight_map: Any) -> Callable[[Path], object]:
    return _raw("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


def _original(**values: Any) -> Callable[[Path], object]:
    """Replace config.json with one in the layout of the original LLaVA."""
    text = json.loads((TINY / "config.json").read_text())["text_config"]
    tower = "openai/clip-vit-large-patch14"
    return _raw(
        "config.json", json.dumps({**text, "model_type": "llava", "mm_vision_tower": tower, **values})
    )


def _adapter(**values: Any) -> Callable[[Path], object]:
    return _raw("adapter_config.json", json.dumps(values))


def _tokenizer(path: str, value: Any) -> Callable[[Path], object]:
    return _sets(path, value, file="tokenizer.json")


def _replace(content: str, *, pattern: dict[str, str] | None = None) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _added(**values: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": 1199, "content": "<pad>", "special": True, **flags, **values}


_DEEP = "[" * 100_000 + "]" * 100_000
_TEMPLATE = ("--conversation", "checkpoint")
_BASE = ("--base-model", str(TINY))
_LONG_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

_CONFIGS = {
    "no heads": _config("text_config.num_attention_heads", 0),
    "no heads and no head size": Hostile(
        _in_order(
            _sets("text_config.num_attention_heads", 0),
            _sets("text_config.head_dim", None),
        ),
        r"config\.json .*text_config\.num_attention_heads",
    ),
    "no KV heads": _config("text_config.num_key_value_heads", 0),
    "KV heads that do not divide the heads": _config(
        "text_config.num_key_value_heads", 3, "num_key_value_heads"
    ),
    "an odd head size": _config("text_config.head_dim", 63),
    "10^9 layers": _config("text_config.num_hidden_layers", 10**9),
    "10^9 layers in the tower": _config("vision_config.num_hidden_layers", 10**9),
    "10^18 columns": _config("text_config.hidden_size", 10**18),
    "a tower whose heads do not divide its size": _config(
        "vision_config.num_attention_heads", 7, "num_attention_heads"
    ),
    "a tower without heads": _config("vision_config.num_attention_heads", 0),
    "a negative vocabulary": _config("text_config.vocab_size", -5),
    "an integer of 4,000 digits": _config("text_config.vocab_size", 10**4000),
    "an integer of 5,000 digits": Hostile(
        _raw("config.json", '{"model_type": "llava", "x": ' + "1" * 5000 + "}"), r"config\.json"
    ),
    "a boolean as a size": _config("text_config.intermediate_size", True),
    "a string as a size": _config("text_config.intermediate_size", "704"),
    "an object as a size": _config("text_config.num_attention_heads", {}),
    "an infinite epsilon": Hostile(
        _raw("config.json", '{"model_type": "llava", "text_config": {"rms_norm_eps": 1e400}}'),
        r"config\.json .*text_config\.rms_norm_eps",
    ),
    "NaN as an epsilon": _config("vision_config.layer_norm_eps", float("nan")),
    "a negative RoPE base": _config("text_config.rope_theta", -1.0, "rope_theta"),
    "YaRN with a base of 1": _config(
        "text_config.rope_scaling", {"type": "yarn", "rope_theta": 1.0}, "rope_theta"
    ),
    "YaRN without a rotation": _config(
        "text_config.rope_scaling", {"type": "yarn", "factor": 4.0, "beta_fast": 0.0}, "beta_fast"
    ),
    "RoPE without a factor": _config("text_config.rope_scaling", {"type": "linear", "factor": 0.0}, "factor"),
    "no context": _config("text_config.max_position_embeddings", 0),
    "too few layer types": Hostile(
        _in_order(
            _sets("text_config.model_type", "qwen2"),
            _sets("text_config.layer_types", ["full_attention"]),
        ),
        r"config\.json .*layer_types",
    ),
    "no image": _config("vision_config.image_size", 0),
    "a huge image": _config("vision_config.image_size", 10**6),
    "no patch": _config("vision_config.patch_size", 0),
    "a patch larger than the image": _config("vision_config.patch_size", 141, "patch_size"),
    "too many patches": Hostile(
        _in_order(
            _sets("vision_config.image_size", 4096),
            _sets("vision_config.patch_size", 1),
        ),
        r"config\.json .*patches",
    ),
    "a million feature layers": _config("vision_feature_layer", [-2] * 1_000_000, "values"),
    "100,000 feature layers": _config("vision_feature_layer", [-2] * 100_000),
    "10^9 layers in the projector": Hostile(
        _original(mm_projector_type="mlp999999999x_gelu"), "projector_depth"
    ),
    "a number as a projector type": Hostile(_original(mm_projector_type=5), "mm_projector_type"),
    "a list as a model type": Hostile(_original(model_type=["llava"]), "model_type"),
    "a list as a tower": Hostile(_original(vision_config=[1, 2]), "vision_config"),
    "a tower whose name is not a path": Hostile(_original(mm_vision_tower="a\0b"), "is not recognized"),
    "a list as a feature": Hostile(_original(mm_vision_select_feature=[]), "mm_vision_select_feature"),
    "a grid in deeply nested Python": Hostile(
        _original(
            image_aspect_ratio="anyres",
            mm_patch_merge_type="spatial_unpad",
            image_grid_pinpoints="-" * 100_000 + "1",
        ),
        "image_grid_pinpoints",
    ),
    "a grid that is no Python": Hostile(
        _original(image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad", image_grid_pinpoints="["),
        "image_grid_pinpoints",
    ),
    "a grid of 100,000 sizes": Hostile(
        _in_order(
            _sets("model_type", "llava_next"),
            _sets("image_grid_pinpoints", [[140, 140]] * 100_000),
        ),
        r"config\.json .*image_grid_pinpoints",
    ),
    "a canvas of 10^12 tiles": Hostile(
        _in_order(
            _sets("model_type", "llava_next"),
            _sets("image_grid_pinpoints", [[14 * 10**7, 14 * 10**7]]),
        ),
        r"config\.json .*tiles",
    ),
    "an unknown model": _config("model_type", "rogue", "model_type"),
    "an image token outside the vocabulary": _config("image_token_index", 10**6, "image_token"),
    "text_config as a list": _config("text_config", [[]]),
    "a list as the end token": Hostile(
        _sets("eos_token_id", [[2]], file="generation_config.json"), r"generation_config\.json .*eos_token_id"
    ),
    "a million end tokens": Hostile(
        _sets("eos_token_id", [2] * 400_000, file="generation_config.json"),
        r"generation_config\.json .*eos_token_id",
    ),
    "a standard deviation of 0": Hostile(
        _sets("image_std", [0, 0, 0], file="preprocessor_config.json"), "image_std"
    ),
    "an infinite mean": Hostile(
        _sets("image_mean", [float("inf"), 0, 0], file="preprocessor_config.json"), "image_mean"
    ),
    "a rescale factor of 0": Hostile(
        _sets("rescale_factor", 0, file="preprocessor_config.json"), "rescale_factor"
    ),
    "an image processor that is a list": Hostile(
        _in_order(
            _raw("preprocessor_config.json", "{}"),
            _sets("image_processor", [1], file="processor_config.json"),
        ),
        r"processor_config\.json",
    ),
}

_FILES = {
    "deeply nested JSON": Hostile(_raw("config.json", _DEEP), r"config\.json .*nested"),
    "moderately nested JSON": Hostile(
        _raw("config.json", '{"a":' * 500 + "1" + "}" * 500), r"config\.json .*nested"
    ),
    "a million values": Hostile(
        _raw("config.json", "[" + "[]," * 1_000_000 + "0]"), r"config\.json .*values"
    ),
    "1 GB of config": Hostile(_sparse("config.json", 1 << 30), r"config\.json .*MiB"),
    "1 GB of tokenizer config": Hostile(
        _sparse("tokenizer_config.json", 1 << 30), r"tokenizer_config\.json .*MiB"
    ),
    "1 GB of tokenizer": Hostile(_sparse("tokenizer.json", 1 << 30), r"tokenizer\.json .*MiB"),
    "1 GB of template": Hostile(
        _sparse("chat_template.jinja", 1 << 30), r"chat_template\.jinja .*MiB", _TEMPLATE
    ),
    "invalid UTF-8": Hostile(_raw("config.json", b'{"a": "\xff"}'), r"config\.json"),
    "a byte order mark": Hostile(_raw("config.json", b"\xef\xbb\xbf{}"), r"config\.json"),
    "an empty file": Hostile(_raw("config.json", ""), r"config\.json"),
    "a pipe as config": Hostile(_fifo("config.json"), r"config\.json is not a regular file"),
    "a pipe as a tokenizer": Hostile(_fifo("tokenizer.json"), r"tokenizer\.json is not a regular file"),
    "a pipe as weights": Hostile(_fifo("model.safetensors"), r"model\.safetensors is not a regular file"),
    "a pipe as a template": Hostile(
        _fifo("chat_template.jinja"), r"chat_template\.jinja is not a regular file", _TEMPLATE
    ),
    "a device as an image processor": Hostile(
        _device("preprocessor_config.json", "/dev/zero"), r"preprocessor_config\.json is not a regular file"
    ),
    "a cycle of links": Hostile(
        _device("generation_config.json", "generation_config.json"), "generation_config"
    ),
}

_WEIGHTS = {
    "a header of 2^63 bytes": Hostile(_header("{}", length=1 << 63), r"model\.safetensors .*header"),
    "a header of 99 MiB": Hostile(
        _header("", length=99 << 20, size=100 << 20), r"model\.safetensors .*header"
    ),
    "a deeply nested header": Hostile(_header(_DEEP), r"model\.safetensors .*nested"),
    "a header that is a list": Hostile(_header("[[1, 2]]"), r"header of .*model\.safetensors"),
    "a million tensors": Hostile(
        _header("{" + ",".join(f'"{i}":[0,0,0,0]' for i in range(300_000)) + "}"),
        r"model\.safetensors .*values",
    ),
    "a shape of 1e400": Hostile(
        _header('{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}'),
        r"model\.safetensors .*'a'",
    ),
    "a negative shape": Hostile(_tensors(a=_entry([-1, -1])), r"model\.safetensors .*'a'"),
    "a fractional shape": Hostile(_tensors(a=_entry([1.5])), r"model\.safetensors .*'a'"),
    "a boolean shape": Hostile(_tensors(a=_entry([True])), r"model\.safetensors .*'a'"),
    "a shape whose product overflows": Hostile(
        _tensors(a=_entry([1 << 32, 1 << 32])), r"model\.safetensors .*'a'"
    ),
    "a shape of 100,000 dimensions": Hostile(_tensors(a=_entry([1] * 100_000)), r"model\.safetensors .*'a'"),
    "a shape with integers of 4,000 digits": Hostile(
        _header(
            '{"a": {"dtype": "F32", "shape": [' + ",".join(["9" * 4000] * 200) + '], "data_offsets": [0, 4]}}'
        ),
        r"model\.safetensors .*'a'",
    ),
    "a string as a shape": Hostile(_tensors(a=_entry("1")), r"model\.safetensors .*'a'"),
    "offsets beyond the end": Hostile(
        _tensors(a=_entry([1 << 40], [0, 1 << 42])), r"model\.safetensors .*'a' extends beyond"
    ),
    "negative offsets": Hostile(_tensors(a=_entry([1], [-4, 0])), r"model\.safetensors .*'a'"),
    "overlapping tensors": Hostile(
        _tensors(a=_entry([2], [0, 8]), b=_entry([2], [4, 12])), r"model\.safetensors .*overlap"
    ),
    "an unknown dtype": Hostile(_tensors(a=_entry([1], dtype=[])), r"model\.safetensors .*'a'"),
    "duplicate tensors": Hostile(
        _header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}'),
        r"model\.safetensors .*twice",
    ),
    "a tensor with a number of 5,000 digits": Hostile(
        _tensors(**{f"model.mm_projector.{'2' * 5000}.weight": _entry([1])}), "unexpected"
    ),
    "a tensor whose name forges a log line": Hostile(
        _tensors(**{"x\n2026-01-01 ERROR llava_worker: y": _entry([1])}), "unexpected .x 2026-01-01 ERROR"
    ),
    "shapes other than in config.json": Hostile(
        _sets("text_config.hidden_size", 512), r"mismatched .*expected float"
    ),
    "a vocabulary other than in config.json": Hostile(_sets("text_config.vocab_size", 1300), "mismatched"),
    "a shard in a parent folder": Hostile(_index({"a": "../model.safetensors"}), r"index\.json .*outside"),
    "a shard with an absolute path": Hostile(_index({"a": "/etc/passwd"}), r"index\.json .*outside"),
    "a shard without a name": Hostile(_index({"a": ""}), r"index\.json"),
    "the parent folder as a shard": Hostile(_index({"a": ".."}), r"index\.json .*outside"),
    "a null byte in a shard's name": Hostile(_index({"a": "a\0b"}), r"index\.json .*outside"),
    "a missing shard": Hostile(_index({"a": "b.safetensors"}), r"b\.safetensors does not exist"),
    "numbers as shards": Hostile(_index({"a": 1}), r"index\.json"),
    "a list as an index": Hostile(_index([1]), r"index\.json"),
    "a pickle as a shard": Hostile(_index({"a": "b.bin"}), r"b\.bin"),
    "an adapter of rank 0": Hostile(_adapter(r=0, lora_alpha=1), r"adapter_config\.json .*r\b", _BASE),
    "an adapter of negative rank": Hostile(
        _adapter(r=-4, lora_alpha=1, use_rslora=True), r"adapter_config\.json .*r\b", _BASE
    ),
    "an adapter with an infinite scale": Hostile(
        _adapter(r=4, lora_alpha=float("inf")), r"adapter_config\.json .*lora_alpha", _BASE
    ),
    "an adapter whose config is a list": Hostile(
        _raw("adapter_config.json", "[1]"), r"adapter_config\.json", _BASE
    ),
}

_LANGUAGE = {
    "a deeply nested tokenizer": Hostile(_raw("tokenizer.json", _DEEP), r"tokenizer\.json"),
    "an empty tokenizer": Hostile(_raw("tokenizer.json", "{}"), r"tokenizer\.json"),
    "a normalizer that doubles the text 100 times": Hostile(
        _tokenizer("normalizer", {"type": "Sequence", "normalizers": [_replace("aa")] * 100}),
        r"tokenizer\.json .*normalizer",
    ),
    "a normalizer that inserts 1 MB": Hostile(
        _tokenizer("normalizer", _replace("b" * 1_000_000)), r"tokenizer\.json .*normalizer"
    ),
    "a normalizer that prepends 1 MB": Hostile(
        _tokenizer("normalizer", {"type": "Prepend", "prepend": "b" * 1_000_000}),
        r"tokenizer\.json .*normalizer",
    ),
    "a deeply nested normalizer": Hostile(
        _raw("tokenizer.json", '{"normalizer":' * 300 + "1" + "}" * 300), r"tokenizer\.json"
    ),
    "a regex with exponential backtracking": Hostile(
        _tokenizer("pre_tokenizer", _split(r"(\w+\w*)+!")), r"tokenizer\.json .*(seconds|crash)"
    ),
    "a regex with exponential backtracking in a normalizer": Hostile(
        _tokenizer("normalizer", _replace("b", pattern={"Regex": r"(a|aa)+$!"})),
        r"tokenizer\.json .*(seconds|crash)",
    ),
    "a regex that is invalid": Hostile(_tokenizer("pre_tokenizer", _split("(")), r"tokenizer\.json"),
    "100,000 added tokens": Hostile(
        _tokenizer("added_tokens", [_added(id=1200 + i, content=f"<{i}>") for i in range(100_000)]),
        r"tokenizer\.json .*added_tokens",
    ),
    "an ID outside the vocabulary": Hostile(_tokenizer("model.vocab.a", 1300), "'a' has the ID 1300"),
    "an ID of another token": Hostile(_tokenizer("model.vocab.zzz", 1197), "'<image>' has the ID 1198, but"),
    "an ID of 2^32 - 1": Hostile(_tokenizer("model.vocab.zzz", 2**32 - 1), r"tokenizer\.json"),
    "an ID of 2^31": Hostile(
        _tokenizer("model.vocab.zzz", 2**31),
        "tokenizer",
        max_grown_bytes=2 << 30,  # the child's limit
    ),
    "tokens that are numbers": Hostile(
        _sets("additional_special_tokens", 7, file="tokenizer_config.json"),
        r"tokenizer_config\.json .*additional_special_tokens",
    ),
    "a tokenizer config that is a list": Hostile(
        _raw("tokenizer_config.json", "[[1]]"), r"tokenizer_config\.json"
    ),
    "a template that never ends": Hostile(_raw("chat_template.jinja", _LONG_LOOP), "2 seconds", _TEMPLATE),
    "a template that uses all memory": Hostile(
        _raw("chat_template.jinja", "{{ 'a' * 4000000000 }}"), "memory", _TEMPLATE
    ),
    "a deeply nested template": Hostile(
        _raw("chat_template.jinja", "{{" + "(" * 20_000 + ")" * 20_000 + "}}"), "template", _TEMPLATE
    ),
    "a template of 2 MB": Hostile(
        _raw("chat_template.jinja", "a" * (2 << 20)), r"chat_template\.jinja .*MiB", _TEMPLATE
    ),
    "templates that are numbers": Hostile(
        _sets("chat_template", [1, 2], file="processor_config.json"),
        r"processor_config\.json .*chat_template",
        _TEMPLATE,
    ),
    "templates without names": Hostile(
        _sets("chat_template", [{"template": "a"}], file="processor_config.json"),
        r"processor_config\.json .*chat_template",
        _TEMPLATE,
    ),
}

_PADDING = {
    "strategy": {"Fixed": 10**12},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<unk>",
}

# Changes without any effect.
HARMLESS: dict[str, Callable[[Path], object]] = {
    "padding to 10^12 tokens": _tokenizer("padding", _PADDING),
    "truncation to no tokens": _tokenizer(
        "truncation",
        {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0},
    ),
    "an empty added token": _tokenizer("added_tokens", [_added(content="")]),
}
CASES = _CONFIGS | _FILES | _WEIGHTS | _LANGUAGE
