"""Reads adapters, which consist of LoRA weights, replacement tensors or both.

    adapter_config.json, adapter_model.*     LoRA: W + scale * B A
    non_lora_trainables.*, mm_projector.*    tensors that replace or extend those of the base model

Adapters are merged into the base model while it is loaded. The original LLaVA repository writes both kinds of
files. config.json in the same folder describes the merged model.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from llava_worker.model.config.bounded_numbers import Factor, Rank
from llava_worker.model.config.model_config import describe_problems
from llava_worker.model.config.text_config import ConfigPart
from llava_worker.model.config.untrusted_file import CheckpointError, read_json_object
from llava_worker.model.loading.checkpoint_files import StoredTensor, read_file
from llava_worker.model.loading.weight_names import canonical_name

__all__ = ["Adapter", "LoraWeight", "is_adapter", "read_adapter"]

_CONFIG = "adapter_config.json"
_REPLACEMENT_FILES = ("non_lora_trainables", "mm_projector")
_SUFFIXES = (".safetensors", ".bin")
_LORA_NAME = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
_MAX_RANK = 1 << 13  # limits the size of ``a``, which is read completely for each chunk of rows
# PEFT options that change the form of the update, W + scale * B A.
_UNSUPPORTED_OPTIONS = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication")


class _LoraConfig(ConfigPart):
    r: Rank
    lora_alpha: Factor
    use_rslora: bool = False


@dataclass(frozen=True, slots=True)
class LoraWeight:
    """The low-rank update of one matrix: ``scale`` * ``b`` @ ``a``, with b [out, rank] and a [rank, in]."""

    a: StoredTensor
    b: StoredTensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the updated matrix."""
        return (self.b.shape[0], self.a.shape[1])

    def merge(self, rows: Tensor, start: int, columns: tuple[int, int] | None = None) -> Tensor:
        """Return the updated rows in fp32.

        ``rows`` are rows [start, start + len(rows)) of the original matrix. If ``columns`` is set, they
        contain only these columns.
        """
        a = self.a.read(0, self.a.shape[0], columns).float()
        b = self.b.read(start, start + len(rows)).float()
        return torch.addmm(rows.float(), b, a, alpha=self.scale)


@dataclass(frozen=True, slots=True)
class Adapter:
    """The tensors of an adapter."""

    lora: dict[str, LoraWeight]  # keyed by the canonical name of the matrix
    replaced: list[StoredTensor]  # named as in the files


def is_adapter(folder: Path) -> bool:
    return (folder / _CONFIG).exists() or bool(_replacement_files(folder))


def read_adapter(folder: Path, *, allow_pickle: bool) -> Adapter:
    """Read the adapter in the folder. Raises CheckpointError if it is incomplete or not supported."""
    lora: dict[str, LoraWeight] = {}
    replaced: list[StoredTensor] = []
    if (folder / _CONFIG).exists():
        scale = _read_scale(folder / _CONFIG)
        stored = read_file(_require_file(folder, "adapter_model"), allow_pickle=allow_pickle)
        lora, replaced = _pair(folder, stored, scale)
    for path in _replacement_files(folder):
        replaced += read_file(path, allow_pickle=allow_pickle)
    return Adapter(lora, replaced)


def _pair(
    folder: Path, stored: list[StoredTensor], scale: float
) -> tuple[dict[str, LoraWeight], list[StoredTensor]]:
    """Return the LoRA weights, keyed by canonical name, and the other tensors."""
    pairs: dict[str, dict[str, StoredTensor]] = {}
    others = []
    for tensor in stored:
        match = _LORA_NAME.fullmatch(tensor.name)
        if match is None:
            others.append(tensor)
        else:
            pairs.setdefault(canonical_name(f"{match[1]}.weight"), {})[match[2]] = tensor
    lora = {}
    for name, pair in pairs.items():
        if pair.keys() != {"A", "B"} or not _is_compatible(pair["A"], pair["B"]):
            raise CheckpointError(
                f"The adapter in {folder} does not contain a matching pair of LoRA matrices for {name}."
            )
        lora[name] = LoraWeight(pair["A"], pair["B"], scale)
    return lora, others


def _is_compatible(a: StoredTensor, b: StoredTensor) -> bool:
    is_matrix = len(a.shape) == len(b.shape) == 2
    return a.is_plain and b.is_plain and is_matrix and a.shape[0] == b.shape[1] <= _MAX_RANK


def _read_scale(path: Path) -> float:
    values = read_json_object(path)
    try:
        config = _LoraConfig.model_validate(values)
    except ValidationError as error:
        reason = describe_problems(error)
        raise CheckpointError(f"{path} is not a valid LoRA configuration. {reason}") from error
    unsupported = ", ".join(key for key in _UNSUPPORTED_OPTIONS if values.get(key))
    if unsupported:
        raise CheckpointError(f"{path} sets {unsupported}. Adapters with these options cannot be merged.")
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def _replacement_files(folder: Path) -> list[Path]:
    found = [_find_file(folder, stem) for stem in _REPLACEMENT_FILES]
    return [path for path in found if path is not None]


def _find_file(folder: Path, stem: str) -> Path | None:
    paths = [folder / (stem + suffix) for suffix in _SUFFIXES]
    return next((path for path in paths if path.exists()), None)


def _require_file(folder: Path, stem: str) -> Path:
    path = _find_file(folder, stem)
    if path is None:
        missing = folder / f"{stem}.safetensors"
        raise CheckpointError(f"{missing} does not exist. The adapter folder is incomplete.")
    return path
