"""Adapter folders: small weights that change a base model's, merged while that one is read.

    adapter_config.json, adapter_model.*     LoRA: W + scale * B A
    non_lora_trainables.*, mm_projector.*    tensors that stand in place of the base's, or beside them

The original repository writes both; config.json in the same folder describes the whole model.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_worker.model.config.model_config import CheckpointError
from llava_worker.model.loading.checkpoint_files import StoredTensor, read_file
from llava_worker.model.loading.weight_names import canonical

__all__ = ["Adapter", "LowRank", "is_adapter", "read_adapter"]

_CONFIG = "adapter_config.json"
_REPLACING = ("non_lora_trainables", "mm_projector")
_SUFFIXES = (".safetensors", ".bin")
_FACTOR = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
# What the adapters' library may have switched on that is more than W + scale * B A.
_UNSERVED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication")


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one matrix: ``scale`` * ``b`` ``a``, with b [out, rank] and a [rank, in]."""

    a: StoredTensor
    b: StoredTensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix it is made for."""
        return (self.b.shape[0], self.a.shape[1])

    def add_to(self, rows: Tensor, start: int, columns: tuple[int, int] | None = None) -> Tensor:
        """Rows [start, start + len(rows)) of the matrix, or ``columns`` of them, merged, in fp32."""
        a = self.a.read(0, self.a.shape[0], columns).float()
        b = self.b.read(start, start + len(rows)).float()
        return torch.addmm(rows.float(), b, a, alpha=self.scale)


@dataclass(frozen=True, slots=True)
class Adapter:
    """``low_rank`` by the canonical name of the matrix; ``tensors`` with the names of their files."""

    low_rank: dict[str, LowRank]
    tensors: list[StoredTensor]


def is_adapter(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() or bool(_replacing_files(folder))


def read_adapter(folder: Path, *, allow_pickle: bool) -> Adapter:
    """What the folder holds. Raises CheckpointError for an adapter that cannot be merged as it was made."""
    low_rank: dict[str, LowRank] = {}
    tensors: list[StoredTensor] = []
    if (folder / _CONFIG).is_file():
        scale = _scale(folder / _CONFIG)
        stored = read_file(_either(folder, "adapter_model"), allow_pickle=allow_pickle)
        low_rank, tensors = _pair(folder, stored, scale)
    for path in _replacing_files(folder):
        tensors += read_file(path, allow_pickle=allow_pickle)
    return Adapter(low_rank, tensors)


def _pair(
    folder: Path, stored: list[StoredTensor], scale: float
) -> tuple[dict[str, LowRank], list[StoredTensor]]:
    factors: dict[str, dict[str, StoredTensor]] = {}
    others = []
    for tensor in stored:
        match = _FACTOR.fullmatch(tensor.name)
        if match is None:
            others.append(tensor)
        else:
            factors.setdefault(canonical(f"{match[1]}.weight"), {})[match[2]] = tensor
    low_rank = {}
    for name, pair in factors.items():
        if pair.keys() != {"A", "B"} or not _fit_together(pair["A"], pair["B"]):
            raise CheckpointError(f"the adapter in {folder} has no matching pair of matrices for {name}")
        low_rank[name] = LowRank(pair["A"], pair["B"], scale)
    return low_rank, others


def _fit_together(a: StoredTensor, b: StoredTensor) -> bool:
    return a.is_plain and b.is_plain and len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]


def _scale(path: Path) -> float:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = int(values["r"]), float(values["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not describe a LoRA adapter: {error!r}") from error
    unserved = [key for key in _UNSERVED if values.get(key)]
    if unserved:
        raise CheckpointError(f"{path} sets {', '.join(unserved)}, which cannot be merged here")
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _replacing_files(folder: Path) -> list[Path]:
    found = [_first(folder, stem) for stem in _REPLACING]
    return [path for path in found if path is not None]


def _first(folder: Path, stem: str) -> Path | None:
    paths = [folder / (stem + suffix) for suffix in _SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def _either(folder: Path, stem: str) -> Path:
    path = _first(folder, stem)
    if path is None:
        raise CheckpointError(f"{folder / stem}.safetensors does not exist; the folder is not complete")
    return path
