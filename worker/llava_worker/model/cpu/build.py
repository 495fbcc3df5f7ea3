"""Compiles the C++ kernels in this folder. Imports only the standard library, because the build hook uses it.

The name of a compiled library contains a digest of the sources and the compiler flags, so that a library of
other sources is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["SOURCES", "VARIANTS", "KernelsUnavailable", "compile_to", "find_compiler", "library_name"]

SOURCES = Path(__file__).parent
_FLAGS = (
    *("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi"),
    # Since GCC 11, std::vector calls this function, which older versions of libstdc++ do not have. It throws
    # a subclass of std::bad_alloc.
    "-D__throw_bad_array_new_length=__throw_bad_alloc",
    "-s",  # without symbol tables, which the loader does not need
)
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
# Compiler flags for each variant, in order of preference.
VARIANTS = {
    "amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "avx512_vnni": _AVX512,
    "avx2": _AVX2,
}


class KernelsUnavailable(RuntimeError):
    """The C++ kernels cannot be used on this machine. The message says why."""


def find_compiler() -> str:
    """Return the path of ``$CXX``, by default g++. Raises KernelsUnavailable if it is not installed."""
    name = os.environ.get("CXX") or "g++"
    compiler = shutil.which(name)
    if compiler is None:
        raise KernelsUnavailable(f"compiler {name} not found")
    return compiler


def compile_to(path: Path, variant: str) -> None:
    """Compile the kernels to ``path`` atomically. Raises KernelsUnavailable if compilation fails."""
    compiler = find_compiler()
    sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
    # Compile to a temporary file and then rename it, so that no process can load an incomplete library.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled = Path(folder) / path.name
        command = [compiler, *_FLAGS, *VARIANTS[variant], *sources, "-o", str(compiled)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KernelsUnavailable(f"{compiler} failed: {done.stderr.strip()[:500]}")
        compiled.replace(path)


def library_name(variant: str) -> str:
    """Return the file name of the library that is compiled from the current sources."""
    digest = hashlib.sha256(repr((_FLAGS, VARIANTS[variant])).encode())
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(source.read_bytes())
    return f"kernels-{variant}-{digest.hexdigest()[:16]}.so"
