"""Measures the peak memory usage of a computation, excluding memory allocated beforehand.

On a GPU, torch's allocator reports the peak. On a CPU, this module adds up the sizes of all live tensors.
Unlike the resident set size of the process, this sum is exact to the byte and the same on every machine. It
does not include memory that a kernel allocates and frees within one call, so callers must add a margin.
"""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["PeakMemory"]


class PeakMemory:
    """A context manager. After ``with PeakMemory(device) as peak: ...``, read ``peak.num_bytes``."""

    def __init__(self, device: torch.device) -> None:
        self.num_bytes = 0
        self._device = device
        self._counter = None if device.type == "cuda" else _TensorCounter(device)
        self._before = 0

    def __enter__(self) -> PeakMemory:
        if self._counter is not None:
            self._counter.__enter__()  # type: ignore[no-untyped-call]
        else:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counter is not None:
            self._counter.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
            self.num_bytes = self._counter.peak
        elif error is None:  # after an error, the device may not respond
            torch.cuda.synchronize(self._device)
            self.num_bytes = torch.cuda.max_memory_allocated(self._device) - self._before


class _TensorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes in live tensor storages that were allocated by operations.

    Storages that existed before are not counted: they first appear as arguments, not as results.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._device = device
        self._current = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, because True would make torch import its compiler, which takes two seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in self._storages((*args, *kwargs.values())):
            self._known.setdefault(storage)
        result = func(*args, **kwargs)
        for storage in self._storages(result):
            if storage not in self._known:
                self._known[storage] = None
                self._current += storage.nbytes()
                weakref.finalize(storage, self._subtract, storage.nbytes())
        self.peak = max(self.peak, self._current)
        return result

    def _storages(self, value: Any) -> list[torch.UntypedStorage]:
        """Return the storages of all tensors in an argument or a result. It can contain lists and tuples."""
        if isinstance(value, torch.Tensor):
            return [value.untyped_storage()] if value.device.type == self._device.type else []
        if not isinstance(value, list | tuple):
            return []
        return [storage for each in value for storage in self._storages(each)]

    def _subtract(self, num_bytes: int) -> None:
        self._current -= num_bytes
