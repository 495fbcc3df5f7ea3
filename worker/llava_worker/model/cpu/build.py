"""Compiles the C++ kernels of this folder for the machine, once, and loads the compiled library.

    python -m llava_worker.model.cpu.build     compiles for every variant of machine into the package's own
                                               folder, for container images without a compiler

A library is searched beside the sources, then in the user's cache. Its name contains a digest of the sources
and of the compiler flags, so an outdated library is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

__all__ = ["NativeKernelsUnavailable", "VARIANTS", "capabilities", "compile_to", "load", "variant_for"]

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
# Compiler flags of each variant, the best variant first.
VARIANTS = {
    "amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "avx512_vnni": _AVX512,
    "avx2": _AVX2,
}
_REQUIRED_AVX512 = ("avx2", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni")
_REQUIRED_CAPABILITIES = {
    "amx": (*_REQUIRED_AVX512, "avx512_bf16", "amx_tile", "amx_int8"),
    "avx512_bf16": (*_REQUIRED_AVX512, "avx512_bf16"),
    "avx512_vnni": _REQUIRED_AVX512,
    "avx2": ("avx2", "fma3"),
}


class NativeKernelsUnavailable(RuntimeError):
    """This machine cannot have the C++ kernels; the message says why."""


def variant_for(capabilities: dict[str, bool]) -> str:
    """Return the best variant for a machine with these capabilities. Raises NativeKernelsUnavailable."""
    for variant, required in _REQUIRED_CAPABILITIES.items():
        if all(capabilities.get(name, False) for name in required):
            return variant
    raise NativeKernelsUnavailable("the processor has no AVX2")


def load(variant: str, cache: Path | None = None) -> ctypes.CDLL:
    """Load the compiled kernels, compiling them if needed; ``cache`` is the user's by default.

    Raises NativeKernelsUnavailable if there is no library and none can be compiled.
    """
    name = _file_name(variant)
    if (_SOURCES / name).is_file():
        return ctypes.CDLL(str(_SOURCES / name))
    folder = cache or _user_cache()
    _make_private(folder)
    path = folder / name
    if not path.is_file():
        logger.info("compiling the kernels for %s into %s, once", variant, path)
        compile_to(path, variant)
    return ctypes.CDLL(str(path))


def compile_to(path: Path, variant: str) -> None:
    """Compile the kernels to ``path``, atomically. Raises NativeKernelsUnavailable with the reason."""
    name = os.environ.get("CXX") or "g++"
    compiler = shutil.which(name)
    if compiler is None:
        raise NativeKernelsUnavailable(f"there is no {name} to compile them with")
    sources = [str(source) for source in sorted(_SOURCES.glob("*.cpp"))]
    # Under another name first, so that no other process loads an incomplete file.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled = Path(folder) / path.name
        command = [compiler, *_FLAGS, *VARIANTS[variant], *sources, "-o", str(compiled)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NativeKernelsUnavailable(f"{compiler} does not compile them: {done.stderr.strip()[:500]}")
        compiled.replace(path)


def _file_name(variant: str) -> str:
    digest = hashlib.sha256(repr((_FLAGS, VARIANTS[variant])).encode())
    for source in sorted([*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h")]):
        digest.update(source.read_bytes())
    return f"kernels-{variant}-{digest.hexdigest()[:16]}.so"


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llava-serve"


def _make_private(folder: Path) -> None:
    """Create the folder for libraries. Raises NativeKernelsUnavailable if other users may write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise NativeKernelsUnavailable(f"there is no folder to keep them in: {error}") from error
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeKernelsUnavailable(f"{folder} belongs to others, or others may write there")


def capabilities() -> dict[str, bool]:
    """Return this machine's capabilities by torch's names; empty on other architectures."""
    return {
        name: bool(value) for name, value in torch.cpu.get_capabilities().items() if value in (True, False)
    }


if __name__ == "__main__":
    for variant in VARIANTS:
        path = _SOURCES / _file_name(variant)
        compile_to(path, variant)
        sys.stdout.write(f"{path}\n")
