"""Imports torch without modules that the native engine does not use on a CPU.

``import torch`` takes 0.9 s of CPU time. 0.15 s of it are ``torch._meta_registrations`` and the modules that
only it imports, which implement operators for ``torch.compile`` and for some operations on the meta device.
Another 0.03 s are searches for the modules of functions.
"""

from __future__ import annotations

import gc
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["collect_garbage", "import_torch"]

_UNUSED = "torch._meta_registrations"
_GPU_LIBRARIES = ("libtorch_cuda.so", "libtorch_hip.so", "libtorch_xpu.so")


def import_torch() -> None:
    """Import torch, if it has not been imported yet. ``torch._meta_registrations`` can be imported later.

    If torch has been built for GPUs, all of it is imported, because other libraries may need it.
    """
    if "torch" in sys.modules or _has_gpu_library():
        return
    sys.modules[_UNUSED] = ModuleType(_UNUSED)  # importing this module then has no effect
    find_module = inspect.getmodule
    # torch reads the source code of some of its functions. If Python looks for their modules, it resolves the
    # paths of all imported modules.
    inspect.getmodule = _find_no_module  # type: ignore[assignment]
    try:
        import torch
    finally:
        inspect.getmodule = find_module
        del sys.modules[_UNUSED]
    vars(torch).pop(_UNUSED.rpartition(".")[2], None)


def collect_garbage() -> None:
    """Enable the garbage collector if it is disabled. It never visits the objects that exist already."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _find_no_module(*_: object) -> None:
    """Replace ``inspect.getmodule``. Source files are then read without the help of the module's loader."""


def _has_gpu_library() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent / "lib"
    return any((folder / name).exists() for name in _GPU_LIBRARIES)
