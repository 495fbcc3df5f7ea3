"""Loads the C++ kernels: the library shipped in the wheel, or else one that is compiled on first use.

Libraries compiled on this machine are stored in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from llava_worker.model.cpu.build import SOURCES, KernelsUnavailable, compile_to, library_name
from llava_worker.model.private_folder import make_private, user_cache

__all__ = ["Library", "capabilities", "load", "variant_for"]

logger = logging.getLogger(__name__)

_REQUIRED_AVX512 = ("avx2", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni")
_REQUIRED_CAPABILITIES = {
    "amx": (*_REQUIRED_AVX512, "avx512_bf16", "amx_tile", "amx_int8"),
    "avx512_bf16": (*_REQUIRED_AVX512, "avx512_bf16"),
    "avx512_vnni": _REQUIRED_AVX512,
    "avx2": ("avx2", "fma3"),
}


class Library(NamedTuple):
    """A loaded library and its origin: "shipped" in the package folder, or "compiled" on this machine."""

    functions: ctypes.CDLL
    source: Literal["shipped", "compiled"]
    variant: str  # a key of `build.VARIANTS`
    digest: str  # of the library file


def variant_for(capabilities: dict[str, bool]) -> str:
    """Return the best variant for a CPU with these capabilities.

    Raises KernelsUnavailable if no variant supports the CPU.
    """
    for variant, required in _REQUIRED_CAPABILITIES.items():
        if all(capabilities.get(name, False) for name in required):
            return variant
    raise KernelsUnavailable("the CPU does not support AVX2")


def load(variant: str, *, shipped: Path = SOURCES, cache: Path | None = None) -> Library:
    """Load the library in the folder ``shipped``. If it is missing or unusable, compile it.

    Newly compiled libraries are written to ``cache``, by default the user's cache folder. Raises
    KernelsUnavailable if compilation is necessary but fails, and OSError if the new library cannot be loaded.
    """
    path = shipped / library_name(variant)
    if path.is_file():
        try:
            return Library(ctypes.CDLL(str(path)), "shipped", variant, _digest(path))
        except OSError as error:  # for example, a wheel for another C library was unpacked by hand
            logger.warning("the C++ kernels in %s cannot be loaded: %s", path, error)
    folder = cache or user_cache()
    try:
        make_private(folder)
    except OSError as error:
        raise KernelsUnavailable(f"the cache folder cannot be used: {error}") from error
    path = folder / path.name
    if not path.is_file():
        logger.info("compiling the C++ kernels for %s into %s", variant, path)
        compile_to(path, variant)
    return Library(ctypes.CDLL(str(path)), "compiled", variant, _digest(path))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def capabilities() -> dict[str, bool]:
    """Return the CPU capabilities that torch reports, keyed by name.

    On architectures that torch does not support, the result is empty.
    """
    return {
        name: bool(value) for name, value in torch.cpu.get_capabilities().items() if value in (True, False)
    }
