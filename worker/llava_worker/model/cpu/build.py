"""From the C++ sources beside this file to functions: compiled for this machine once, then found again.

    python -m llava_worker.model.cpu.build     compiles for every kind of machine into the package's own
                                               folder, for an image that will have no compiler

What is loaded is looked for beside the sources, then in the user's cache. Its name carries a digest of the
sources and of how they are compiled, so that a change is never answered by an old file.
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

__all__ = ["KernelsMissing", "VARIANTS", "compile_to", "load", "variant_for"]

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
# What the compiler may use, the best first, by what the machine must have for it.
VARIANTS = {
    "amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "avx512_vnni": _AVX512,
    "avx2": _AVX2,
}
_NEEDS_AVX512 = ("avx2", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni")
_NEEDS = {
    "amx": (*_NEEDS_AVX512, "avx512_bf16", "amx_tile", "amx_int8"),
    "avx512_bf16": (*_NEEDS_AVX512, "avx512_bf16"),
    "avx512_vnni": _NEEDS_AVX512,
    "avx2": ("avx2", "fma3"),
}


class KernelsMissing(RuntimeError):
    """This machine cannot have them; the message says why."""


def variant_for(capabilities: dict[str, bool]) -> str:
    """The best one for a machine with these capabilities. Raises KernelsMissing if there is none."""
    for variant, needs in _NEEDS.items():
        if all(capabilities.get(name, False) for name in needs):
            return variant
    raise KernelsMissing("the processor has no AVX2")


def load(variant: str, cache: Path | None = None) -> ctypes.CDLL:
    """The compiled kernels; ``cache`` is the user's unless given.

    Raises KernelsMissing where they are neither there nor can be made.
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
    """Put the compiled kernels at ``path``, whole or not at all. Raises KernelsMissing with the reason."""
    name = os.environ.get("CXX") or "g++"
    compiler = shutil.which(name)
    if compiler is None:
        raise KernelsMissing(f"there is no {name} to compile them with")
    sources = [str(source) for source in sorted(_SOURCES.glob("*.cpp"))]
    # Made under another name: who looks at the same time sees no half of a file.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *_FLAGS, *VARIANTS[variant], *sources, "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KernelsMissing(f"{compiler} does not compile them: {done.stderr.strip()[:500]}")
        made.replace(path)


def _file_name(variant: str) -> str:
    digest = hashlib.sha256(repr((_FLAGS, VARIANTS[variant])).encode())
    for source in sorted([*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h")]):
        digest.update(source.read_bytes())
    return f"kernels-{variant}-{digest.hexdigest()[:16]}.so"


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llava-serve"


def _make_private(folder: Path) -> None:
    """Code is loaded from there: nobody else may write into it. Raises KernelsMissing if somebody may."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise KernelsMissing(f"there is no folder to keep them in: {error}") from error
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KernelsMissing(f"{folder} belongs to others, or others may write there")


def capabilities() -> dict[str, bool]:
    """This machine's, by torch's names; empty where they have no meaning."""
    return {
        name: bool(value) for name, value in torch.cpu.get_capabilities().items() if value in (True, False)
    }


if __name__ == "__main__":
    for each in VARIANTS:
        compile_to(_SOURCES / _file_name(each), each)
        sys.stdout.write(f"{_SOURCES / _file_name(each)}\n")
