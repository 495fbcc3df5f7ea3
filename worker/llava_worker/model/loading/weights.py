"""From a checkpoint's files into a model's parameters, a few rows of one tensor at a time.

The model says which tensors it wants, under the canonical names of `names`. Every wanted tensor must come and
every other must be known as unneeded. Nothing is written anywhere but into the model: a load that is killed
leaves nothing behind.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from llava_worker.model.config.model_config import CheckpointError
from llava_worker.model.layers.linear import Linear
from llava_worker.model.loading.checkpoint_files import StoredTensor, find_weights, read_file
from llava_worker.model.loading.lora import Adapter, is_adapter, read_adapter
from llava_worker.model.loading.weight_names import canonical, canonical_in_tower, is_unneeded

__all__ = ["Progress", "load_weights"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, int], object]  # bytes in place, bytes in all, tensors begun

# Read at once: much more than a disk needs to be fast, and little beside any model.
_PIECE_BYTES = 8 << 20


def load_weights(
    model: nn.Module,
    folder: Path,
    *,
    vision_tower: Path | None = None,
    base: Path | None = None,
    allow_pickle: bool = False,
    on_progress: Progress | None = None,
    is_whole: bool = True,
) -> None:
    """Fill every parameter of ``model`` from the files in ``folder``.

    ``vision_tower`` is where a tower comes from that ``folder`` lacks; ``base`` is the model that ``folder``
    adapts, if it holds an adapter. A model that is not ``is_whole`` lacks modules that the checkpoint has,
    and their tensors are passed over. After, each parameter was written once. Raises CheckpointError that
    lists missing, unexpected (a second one of a name is) and wrongly shaped tensors, or names a file that is
    absent, broken or, without ``allow_pickle``, pickled.
    """
    adapter = _adapter(folder, base, allow_pickle)
    main = [
        tensor
        for path in find_weights(base or folder)
        for tensor in read_file(path, allow_pickle=allow_pickle)
    ]
    plan = _Plan(dict(_slots(model)), adapter, is_whole)
    plan.take(adapter.tensors, canonical)
    plan.take(main, canonical)
    if vision_tower is not None:
        paths = find_weights(vision_tower)
        stored = [tensor for path in paths for tensor in read_file(path, allow_pickle=allow_pickle)]
        plan.take(stored, canonical_in_tower)
    plan.complain(folder, has_tower=vision_tower is not None)
    plan.carry_out(on_progress)
    logger.info("loaded %d tensors from %s", len(plan.wanted), folder)


def _adapter(folder: Path, base: Path | None, allow_pickle: bool) -> Adapter:
    if base is None and is_adapter(folder) and not _is_whole(folder):
        raise CheckpointError(f"{folder} adapts another model: give that one's folder as base")
    if base is None:
        return Adapter({}, [])
    if not is_adapter(folder):
        raise CheckpointError(f"a base is given, {base}, but {folder} holds no adapter")
    return read_adapter(folder, allow_pickle=allow_pickle)


def _is_whole(folder: Path) -> bool:
    try:
        return bool(find_weights(folder))
    except CheckpointError:
        return False


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a tensor of the checkpoint goes; ``place`` copies rows there, in the target's dtype.

    ``shape`` is the stored tensor's. Of it only ``num_rows`` from ``first_row`` on are wanted, and of these
    only ``columns`` if they are given.
    """

    shape: tuple[int, ...]
    place: Callable[[int, Tensor], object]  # first row, counted from ``first_row``; rows
    num_rows: int
    first_row: int = 0
    columns: tuple[int, int] | None = None

    @property
    def num_numbers(self) -> int:
        """That are read."""
        row = math.prod(self.shape[1:]) if self.columns is None else self.columns[1] - self.columns[0]
        return self.num_rows * row


@dataclass
class _Plan:
    """Which stored tensor goes to which slot: decided, and found right, before the first byte is read."""

    wanted: dict[str, _Slot]
    adapter: Adapter
    is_whole: bool = True
    _sources: dict[str, StoredTensor] = field(default_factory=dict)
    _unexpected: list[str] = field(default_factory=list)
    _wrong: list[str] = field(default_factory=list)

    def take(self, stored: list[StoredTensor], name_of: Callable[[str], str]) -> None:
        """Tensors for slots that nothing taken earlier fills."""
        earlier = set(self._sources)
        for tensor in stored:
            name = name_of(tensor.name)
            if name in earlier:
                continue
            if name in self.wanted and name not in self._sources:
                self._sources[name] = tensor
                if tensor.shape != self.wanted[name].shape or not tensor.is_plain:
                    shape = list(self.wanted[name].shape)
                    self._wrong.append(f"{tensor.name} is {tensor.kind}, not {shape} of floats")
            elif name in self.wanted or (self.is_whole and not is_unneeded(name, self.wanted)):
                self._unexpected.append(tensor.name)

    def complain(self, folder: Path, *, has_tower: bool) -> None:
        """Raises CheckpointError if the files do not fit the model."""
        missing = sorted(self.wanted.keys() - self._sources.keys())
        tower = [name for name in self.wanted if name.startswith("vision_tower.")]
        if tower and not has_tower and missing == sorted(tower):
            raise CheckpointError(
                f"{folder} does not hold the weights of its vision tower: give the tower's own folder as "
                "vision_tower"
            )
        unmatched = sorted(
            name
            for name, low_rank in self.adapter.low_rank.items()
            if (name not in self.wanted and self.is_whole)
            or (name in self.wanted and low_rank.shape != self.wanted[name].shape)
        )
        problems = {"missing": missing, "unexpected": self._unexpected, "wrong": self._wrong}
        problems["of an adapter for nothing"] = unmatched
        found = [f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names]
        if found:
            raise CheckpointError(f"the weights in {folder} do not fit config.json: {'; '.join(found)}")

    def carry_out(self, on_progress: Progress | None) -> None:
        total = sum(
            self.wanted[name].num_numbers * tensor.dtype.itemsize for name, tensor in self._sources.items()
        )
        done = 0
        for count, (name, tensor) in enumerate(self._sources.items(), start=1):
            for num_bytes in self._place(name, tensor):
                done += num_bytes
                if on_progress is not None:
                    on_progress(done, total, count)

    def _place(self, name: str, tensor: StoredTensor) -> Iterator[int]:
        """Copy a tensor into its slot; the bytes of each piece, once that is done."""
        slot = self.wanted[name]
        num_rows = slot.num_rows
        step = max(1, _PIECE_BYTES * num_rows // max(1, slot.num_numbers * tensor.dtype.itemsize))
        for start in range(0, num_rows, step):
            yield self._place_piece(name, tensor, start, min(start + step, num_rows))

    def _place_piece(self, name: str, tensor: StoredTensor, start: int, end: int) -> int:
        # A function of its own, so that one piece is given up before the next is read.
        slot = self.wanted[name]
        first = slot.first_row + start
        rows = tensor.read(first, slot.first_row + end, slot.columns)
        low_rank = self.adapter.low_rank.get(name)
        slot.place(start, rows if low_rank is None else low_rank.add_to(rows, first, slot.columns))
        return rows.nbytes


def _slots(model: nn.Module) -> Iterator[tuple[str, _Slot]]:
    """Every tensor that the model wants, by canonical name."""
    seen: set[Tensor] = set()  # a tied table is wanted once, under its first name
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        parameters = [(prefix + name, tensor) for name, tensor in module.named_parameters(recurse=False)]
        parameters = [(name, tensor) for name, tensor in parameters if tensor not in seen]
        seen.update(tensor for _, tensor in parameters)
        if isinstance(module, Linear):
            if parameters:
                yield from _linear_slots(path, module)
            continue
        for name, tensor in parameters:
            yield name, _Slot(tuple(tensor.shape), _rows_of(tensor.data), len(tensor))


def _linear_slots(path: str, linear: Linear) -> Iterator[tuple[str, _Slot]]:
    parent, shape = path.rpartition(".")[0], linear.shape
    size, rows, cut = shape.in_features, shape.rows, shape.columns
    columns = None if cut.num == 1 else (cut.first(size), cut.first(size) + size)
    first = 0
    for part, width in shape.parts.items():
        name, stored = f"{parent}.{part}" if part else path, width * rows.num
        load, at = _after(first, linear.load_rows), rows.first(width)
        yield f"{name}.weight", _Slot((stored, size * cut.num), load, width, at, columns)
        if shape.has_bias:
            yield f"{name}.bias", _Slot((stored,), _after(first, linear.load_bias), width, at)
        first += width


def _rows_of(target: Tensor) -> Callable[[int, Tensor], object]:
    return lambda start, rows: target[start : start + len(rows)].copy_(rows)


def _after(first: int, load: Callable[[int, Tensor], object]) -> Callable[[int, Tensor], object]:
    return lambda start, rows: load(first + start, rows)


def _some(names: list[str], limit: int = 20) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
