"""The key of packed weights: two loaded models with equal keys have bitwise equal parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path

import torch
from torch import nn

from llava_worker.model.layers.linear import Linear
from llava_worker.model.loading.checkpoint_files import PICKLED

__all__ = ["code_digest", "weights_key"]

_MODEL_CODE = Path(__file__).parents[1]
_SUFFIXES = (".safetensors", *PICKLED)


def weights_key(model: nn.Module, digest: str, folders: Iterable[Path], *, has_adapter: bool) -> str:
    """Return 32 hexadecimal digits for a model that will be loaded from these folders.

    The key covers

    - the weights: ``digest`` (see `digest_weights`), which contains samples of all tensors, and the name, the
      size and the modification time of each file, which change if a few rows of a tensor are edited
    - the format: the layers with their shapes and shards, and the data type and shape of each parameter
    - the code: llava_worker.model, torch, and the library that packs quantized weights. The result of merging
      an adapter also depends on the number of threads.
    """
    parts = {
        "weights": digest,
        "files": sorted(_file_identities(folders)),
        "layers": list(_layers(model)),
        "code": code_digest(_MODEL_CODE),
        "torch": torch.__version__,
        "merge": [torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()] if has_adapter else [],
    }
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _file_identities(folders: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    for folder in folders:
        for path in folder.iterdir():
            if path.suffix in _SUFFIXES:
                status = path.stat()
                yield path.name, status.st_size, status.st_mtime_ns


def _layers(model: nn.Module) -> Iterator[list[str]]:
    for name, module in model.named_modules():
        parameters = [
            f"{key} {tensor.dtype} {tuple(tensor.shape)}"
            for key, tensor in module.named_parameters(recurse=False)
        ]
        details = [repr(module.shape), module.packing] if isinstance(module, Linear) else []
        yield [name, type(module).__name__, *details, *parameters]


@cache
def code_digest(folder: Path) -> str:
    """Return 32 hexadecimal digits for the Python files in the folder."""
    hash_ = blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.py")):
        hash_.update(path.read_bytes())
    return hash_.hexdigest()
