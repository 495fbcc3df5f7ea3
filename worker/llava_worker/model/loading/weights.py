"""Loads the weights of a checkpoint into a model, a few rows of one tensor at a time.

The canonical names of the model's parameters determine which tensors are required (see `weight_names`). The
files must contain all of these tensors, except the bias of the LM head, which is 0 if it is missing. Apart
from them, the files may contain only tensors that are known to be unused. The loaded parameters can be stored
in a cache, so that the next process need not load them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llava_worker.model.config.model_config import CheckpointError
from llava_worker.model.layers.linear import Linear
from llava_worker.model.loading.checkpoint_files import StoredTensor, find_weights, read_file
from llava_worker.model.loading.lora import Adapter, is_adapter, read_adapter
from llava_worker.model.loading.unstored_weights import UnstoredWeights
from llava_worker.model.loading.weight_names import canonical_name, canonical_tower_name, is_unused
from llava_worker.model.loading.weights_cache import WeightsCache
from llava_worker.model.loading.weights_digest import digest_weights
from llava_worker.model.loading.weights_key import weights_key

__all__ = ["LoadedWeights", "Progress", "load_weights"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, int], object]  # bytes loaded, total bytes, number of tensors started

# Bytes per read: enough to reach the full speed of a disk, but small compared with any model.
_CHUNK_BYTES = 8 << 20
_TOWER = "vision_tower."  # prefix of canonical names
# Phi's LM head has a bias. transformers 5 and the first version of TinyLLaVA omit it in a LLaVA model.
_OPTIONAL = frozenset({"lm_head.bias"})


class LoadedWeights(NamedTuple):
    """The result of loading. ``mapped_bytes`` are in mapped files, and the others in private memory.

    ``unstored`` is set if the weights are to be stored in the weights cache. ``key`` identifies the file in
    the cache. It is empty if the cache is not used.
    """

    digest: str
    mapped_bytes: int = 0
    key: str = ""
    unstored: UnstoredWeights | None = None


def load_weights(
    model: nn.Module,
    folder: Path,
    *,
    vision_tower: Path | None = None,
    base: Path | None = None,
    allow_pickle: bool = False,
    on_progress: Progress | None = None,
    is_whole: bool = True,
    cache: WeightsCache | None = None,
) -> LoadedWeights:
    """Load all parameters of ``model`` from the files in ``folder``.

    If ``folder`` does not contain the vision tower, ``vision_tower`` is the folder that does. Tensors of the
    tower in ``folder`` take precedence, as in the original LLaVA, because they may have been fine-tuned. If
    ``folder`` contains an adapter, ``base`` is the folder that contains its base model. If ``is_whole`` is
    false, ``model`` consists of only some modules of the checkpoint, and the tensors of other modules are
    ignored. If there is a ``cache``, whose use does not change any bit, the model must be on a CPU.

    Raises CheckpointError if tensors are missing or unexpected, if their shapes or dtypes are wrong, if a
    file is missing or corrupt, or if it is a pickle file and ``allow_pickle`` is false. The message contains
    the names of the tensors or the file.
    """
    adapter = _read_adapter(folder, base, allow_pickle)
    plan = _LoadPlan(dict(_targets(model)), adapter, is_whole)
    plan.add(adapter.replaced, canonical_name)
    plan.add(_read_folder(base or folder, allow_pickle), canonical_name)
    if vision_tower is not None and plan.lacks_tower:
        plan.add(_read_folder(vision_tower, allow_pickle), canonical_tower_name)
    plan.validate(folder, has_tower=vision_tower is not None)
    if cache is None:
        plan.run(on_progress)
        return LoadedWeights(plan.digest())  # the files are now in the page cache
    digest = plan.digest()
    folders = [each for each in (folder, base, vision_tower) if each is not None]
    key = weights_key(model, digest, folders, has_adapter=bool(adapter.lora))
    mapped_bytes, unstored = cache.load(model, key, lambda: plan.run(on_progress))
    return LoadedWeights(digest, mapped_bytes, key if mapped_bytes or unstored else "", unstored)


def _read_folder(folder: Path, allow_pickle: bool) -> list[StoredTensor]:
    return [tensor for path in find_weights(folder) for tensor in read_file(path, allow_pickle=allow_pickle)]


def _read_adapter(folder: Path, base: Path | None, allow_pickle: bool) -> Adapter:
    if base is None and is_adapter(folder) and not _has_weights(folder):
        raise CheckpointError(
            f"{folder} contains only an adapter. Set base_model to the folder that contains its base model."
        )
    if base is None:
        return Adapter({}, [])
    if not is_adapter(folder):
        raise CheckpointError(f"{folder} does not contain an adapter, but base_model is set to {base}.")
    return read_adapter(folder, allow_pickle=allow_pickle)


def _has_weights(folder: Path) -> bool:
    try:
        return bool(find_weights(folder))
    except CheckpointError:
        return False


@dataclass(frozen=True, slots=True)
class _Target:
    """The parameter, or the part of a parameter, into which a tensor is loaded.

    ``shape`` is the shape of the tensor in the file. Only ``num_rows`` rows, starting at ``first_row``, are
    loaded. If ``columns`` [first, last) is set, only those columns of the rows are loaded.
    """

    shape: tuple[int, ...]
    load: Callable[[int, Tensor], object]  # arguments: offset from ``first_row``, rows; converts the dtype
    num_rows: int
    first_row: int = 0
    columns: tuple[int, int] | None = None

    @property
    def num_elements(self) -> int:
        row = math.prod(self.shape[1:]) if self.columns is None else self.columns[1] - self.columns[0]
        return self.num_rows * row


@dataclass
class _LoadPlan:
    """Assigns a tensor in the files to each target. The plan is validated before any tensor is read."""

    targets: dict[str, _Target]  # keyed by canonical name
    adapter: Adapter
    is_whole: bool = True
    _sources: dict[str, StoredTensor] = field(default_factory=dict)
    _unexpected: list[str] = field(default_factory=list)
    _wrong: list[str] = field(default_factory=list)

    def add(self, stored: list[StoredTensor], name_of: Callable[[str], str]) -> None:
        """Add tensors, except those whose targets were assigned in an earlier call."""
        earlier = set(self._sources)
        for tensor in stored:
            name = name_of(tensor.name)
            if name in earlier:
                continue
            if name in self.targets and name not in self._sources:
                self._sources[name] = tensor
                if tensor.shape != self.targets[name].shape or not tensor.is_plain:
                    shape = list(self.targets[name].shape)
                    self._wrong.append(f"{tensor.name} is {tensor.description}, expected float {shape}")
            elif name in self.targets or (self.is_whole and not is_unused(name, self.targets)):
                self._unexpected.append(tensor.name)

    @property
    def lacks_tower(self) -> bool:
        """Whether a tensor of the vision tower is still missing."""
        return any(name.startswith(_TOWER) for name in self.targets.keys() - self._sources.keys())

    def validate(self, folder: Path, *, has_tower: bool) -> None:
        """Raise CheckpointError if the files do not match the model."""
        missing = sorted(self.targets.keys() - self._sources.keys() - _OPTIONAL)
        tower = [name for name in self.targets if name.startswith(_TOWER)]
        if tower and not has_tower and missing == sorted(tower):
            raise CheckpointError(
                f"{folder} does not contain the weights of its vision tower. Set vision_tower to the folder "
                "that contains them."
            )
        unmatched = sorted(
            name
            for name, lora in self.adapter.lora.items()
            if (name not in self.targets and self.is_whole)
            or (name in self.targets and lora.shape != self.targets[name].shape)
        )
        problems = {"missing": missing, "unexpected": self._unexpected, "mismatched": self._wrong}
        problems["in the adapter without a matching weight"] = unmatched
        found = [f"{len(names)} {kind} ({_join(names)})" for kind, names in problems.items() if names]
        if found:
            differences = "; ".join(found)
            raise CheckpointError(f"The tensors in {folder} do not match config.json: {differences}.")

    def run(self, on_progress: Progress | None) -> None:
        """Load all tensors into their targets, and zeros into the targets of optional tensors."""
        for name in _OPTIONAL & self.targets.keys() - self._sources.keys():
            self.targets[name].load(0, torch.zeros(self.targets[name].shape))
        total = sum(
            self.targets[name].num_elements * tensor.dtype.itemsize for name, tensor in self._sources.items()
        )
        done = 0
        for count, (name, tensor) in enumerate(self._sources.items(), start=1):
            for num_bytes in self._load_tensor(name, tensor):
                done += num_bytes
                if on_progress is not None:
                    on_progress(done, total, count)
        logger.info("loaded %d tensors", len(self._sources))

    def digest(self) -> str:
        """Return a digest of the tensors."""
        lora = {name: weight for name, weight in self.adapter.lora.items() if name in self._sources}
        return digest_weights(self._sources, lora)

    def _load_tensor(self, name: str, tensor: StoredTensor) -> Iterator[int]:
        """Load a tensor in chunks. After each chunk, yield its size in bytes."""
        target = self.targets[name]
        num_rows = target.num_rows
        step = max(1, _CHUNK_BYTES * num_rows // max(1, target.num_elements * tensor.dtype.itemsize))
        for start in range(0, num_rows, step):
            yield self._load_chunk(name, tensor, start, min(start + step, num_rows))

    def _load_chunk(self, name: str, tensor: StoredTensor, start: int, end: int) -> int:
        # This is a separate function so that each chunk is freed before the next one is read.
        target = self.targets[name]
        first = target.first_row + start
        rows = tensor.read(first, target.first_row + end, target.columns)
        lora = self.adapter.lora.get(name)
        target.load(start, rows if lora is None else lora.merge(rows, first, target.columns))
        return rows.nbytes


def _targets(model: nn.Module) -> Iterator[tuple[str, _Target]]:
    """Yield canonical names and targets for all parameters and for all parts of fused parameters."""
    seen: set[Tensor] = set()  # a tied embedding table is loaded only once, under its first name
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        parameters = [(prefix + name, tensor) for name, tensor in module.named_parameters(recurse=False)]
        parameters = [(name, tensor) for name, tensor in parameters if tensor not in seen]
        seen.update(tensor for _, tensor in parameters)
        if isinstance(module, Linear):
            if parameters:
                yield from _linear_targets(path, module)
            continue
        for name, tensor in parameters:
            yield name, _Target(tuple(tensor.shape), _copy_rows_to(tensor.data), len(tensor))


def _linear_targets(path: str, linear: Linear) -> Iterator[tuple[str, _Target]]:
    parent, shape = path.rpartition(".")[0], linear.shape
    size, rows, column_shard = shape.in_features, shape.rows, shape.columns
    columns = None
    if column_shard.num > 1:
        columns = (column_shard.first(size), column_shard.first(size) + size)
    first = 0  # the part's first row in the fused weight
    for part, width in shape.parts.items():
        name, stored = f"{parent}.{part}" if part else path, width * rows.num
        load, stored_first = _from_row(first, linear.load_rows), rows.first(width)
        yield (
            f"{name}.weight",
            _Target((stored, size * column_shard.num), load, width, stored_first, columns),
        )
        if shape.has_bias:
            yield f"{name}.bias", _Target((stored,), _from_row(first, linear.load_bias), width, stored_first)
        first += width


def _copy_rows_to(target: Tensor) -> Callable[[int, Tensor], object]:
    return lambda start, rows: target[start : start + len(rows)].copy_(rows)


def _from_row(first: int, load: Callable[[int, Tensor], object]) -> Callable[[int, Tensor], object]:
    return lambda start, rows: load(first + start, rows)


def _join(names: list[str], limit: int = 20) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
