"""Imports torch in less time. This only applies to builds for CPUs.

``import torch`` takes 0.9 s of CPU time for 1,100 modules. Two parts of it are avoided:

- Dynamically linking the library takes 0.12 s. `load_library` does this in a thread while Python imports other
  modules, because a call through ctypes releases the GIL.
- ``torch._meta_registrations`` and the modules that only it imports take 0.15 s. They implement operators for
  ``torch.compile`` and for some operations on the meta device, which the native engine does not use.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType

__all__ = ["collect_garbage", "import_torch", "load_library"]

_UNUSED = "torch._meta_registrations"


def load_library() -> None:
    """Start to link torch's library in a thread. If this fails, importing torch reports the error."""
    folder = _library_folder()
    if folder is not None:
        threading.Thread(
            target=_link, args=(folder / "libtorch_cpu.so",), name="libtorch", daemon=True
        ).start()


def import_torch() -> None:
    """Import torch, if it has not been imported yet. ``torch._meta_registrations`` can be imported later."""
    if "torch" in sys.modules or _library_folder() is None:
        return
    sys.modules[_UNUSED] = ModuleType(_UNUSED)  # importing this module then has no effect
    try:
        import torch
    finally:
        del sys.modules[_UNUSED]
    vars(torch).pop(_UNUSED.rpartition(".")[2], None)


def collect_garbage() -> None:
    """Enable the garbage collector if it is disabled. It never visits the objects that exist already."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _library_folder() -> Path | None:
    """Return the folder of torch's libraries on Linux, or None if torch has been built for GPUs."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None or sys.platform != "linux":
        return None
    folder = Path(spec.origin).parent / "lib"
    has_gpu_library = any((folder / f"libtorch_{name}.so").exists() for name in ("cuda", "hip", "xpu"))
    return None if has_gpu_library else folder


def _link(library: Path) -> None:
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    dlopen(bytes(library), os.RTLD_NOW)
