"""Compiles and loads the C++ kernels in this folder.

    python -m llava_worker.model.cpu.build     compiles all variants into the package folder, for container
                                               images without a compiler

A compiled library can be in the package folder or in the user's cache folder. If it is in neither, it is
compiled into the cache folder. To prevent an outdated library from being loaded, the file name contains a
digest of the sources and the compiler flags.
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
# Compiler flags for each variant, in order of preference.
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
    """The C++ kernels cannot be used on this machine. The message says why."""


def variant_for(capabilities: dict[str, bool]) -> str:
    """Return the best variant for a CPU with these capabilities.

    Raises NativeKernelsUnavailable if no variant supports the CPU.
    """
    for variant, required in _REQUIRED_CAPABILITIES.items():
        if all(capabilities.get(name, False) for name in required):
            return variant
    raise NativeKernelsUnavailable("the CPU does not support AVX2")


def load(variant: str, cache: Path | None = None) -> ctypes.CDLL:
    """Load the kernels. If necessary, compile them first.

    Newly compiled libraries are written to ``cache``, by default the user's cache folder. Raises
    NativeKernelsUnavailable if compilation is necessary but fails.
    """
    name = _file_name(variant)
    if (_SOURCES / name).is_file():
        return ctypes.CDLL(str(_SOURCES / name))
    folder = cache or _user_cache()
    _make_private(folder)
    path = folder / name
    if not path.is_file():
        logger.info("compiling the C++ kernels for %s into %s", variant, path)
        compile_to(path, variant)
    return ctypes.CDLL(str(path))


def compile_to(path: Path, variant: str) -> None:
    """Compile the kernels to ``path`` atomically. Raises NativeKernelsUnavailable if compilation fails."""
    name = os.environ.get("CXX") or "g++"
    compiler = shutil.which(name)
    if compiler is None:
        raise NativeKernelsUnavailable(f"compiler {name} not found")
    sources = [str(source) for source in sorted(_SOURCES.glob("*.cpp"))]
    # Compile to a temporary file and then rename it, so that no process can load an incomplete library.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled = Path(folder) / path.name
        command = [compiler, *_FLAGS, *VARIANTS[variant], *sources, "-o", str(compiled)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NativeKernelsUnavailable(f"{compiler} failed: {done.stderr.strip()[:500]}")
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
    """Create the cache folder. Raises NativeKernelsUnavailable if another user can write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise NativeKernelsUnavailable(f"the cache folder could not be created: {error}") from error
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeKernelsUnavailable(f"{folder} is owned or writable by another user")


def capabilities() -> dict[str, bool]:
    """Return the CPU capabilities that torch reports, keyed by name.

    On architectures that torch does not support, the result is empty.
    """
    return {
        name: bool(value) for name, value in torch.cpu.get_capabilities().items() if value in (True, False)
    }


if __name__ == "__main__":
    for variant in VARIANTS:
        path = _SOURCES / _file_name(variant)
        compile_to(path, variant)
        sys.stdout.write(f"{path}\n")
