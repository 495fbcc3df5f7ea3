"""The build hook of the project: compiles the C++ kernels for CPUs into the wheel.

On Linux on x86-64, the environment variable LLAVA_BUILD_KERNELS selects what is compiled. On other platforms,
the result is always a pure wheel.

    auto (default)      all variants, or a pure wheel if compilation fails
    required            all variants
    avx2,amx            only these variants
    none                a pure wheel, for all platforms

Workers from a pure wheel compile the kernels when they start for the first time. Editable installations and
source distributions contain no compiled kernels.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = Path("llava_worker", "model", "cpu")
_PLATFORM = "linux-x86_64"
# Versions of the symbols of libstdc++ and libgcc in systems with glibc 2.27, which have GCC 7.
_MAX_VERSIONS = {"GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
_MIN_GLIBC = (2, 27)


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds compiled kernels and a platform tag to wheels."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels. Raises SystemExit if they are required but cannot be compiled."""
        sources = Path(self.root) / "worker" / _PACKAGE
        requested = os.environ.get("LLAVA_BUILD_KERNELS") or "auto"
        if version == "editable" or requested == "none":
            return
        if not sources.is_dir():  # the server's image is built without the worker
            return
        machine = f"{sys.platform}-{platform.machine()}"
        if machine != _PLATFORM:
            self.app.display_info(f"No kernels are compiled: they support {_PLATFORM}, not {machine}.")
            return
        build = _load_module(sources / "build.py")
        variants = list(build.VARIANTS) if requested in ("auto", "required") else requested.split(",")
        if unknown := [variant for variant in variants if variant not in build.VARIANTS]:
            raise SystemExit(
                f"LLAVA_BUILD_KERNELS={requested}: no variant {unknown[0]!r}. Use auto, required, none, "
                f"or a comma-separated list of {', '.join(build.VARIANTS)}."
            )
        self._folder = tempfile.TemporaryDirectory()  # deleted with this object, after the wheel is written
        try:
            libraries = _compile(build, variants, Path(self._folder.name))
        except build.KernelsUnavailable as error:
            if requested != "auto":
                raise SystemExit(f"The C++ kernels cannot be compiled: {error}") from error
            self.app.display_warning(
                f"The wheel contains no compiled kernels: {error}. Workers will compile them when they start "
                "for the first time, or use torch kernels, which are several times slower."
            )
            return
        build_data["force_include"] |= {str(path): str(_PACKAGE / path.name) for path in libraries}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(path.read_bytes() for path in libraries)}"


def platform_tag(libraries: Iterable[bytes]) -> str:
    """Return the platform tag of a wheel with these ELF libraries.

    The tag contains the oldest version of glibc that has all required symbols. If the libraries require
    symbols of libstdc++ or libgcc that such systems may not have, the tag is ``linux_x86_64``, which package
    indexes reject.
    """
    glibc: tuple[int, ...] = _MIN_GLIBC
    for library in libraries:
        # The names of symbol versions are zero-terminated strings in the table of dynamic strings.
        for name, number in re.findall(rb"\0(GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)(?=\0)", library):
            version = tuple(int(part) for part in number.split(b"."))
            if name == b"GLIBC":
                glibc = max(glibc, version[:2])
            elif version > _MAX_VERSIONS[name.decode()]:
                return "linux_x86_64"
    return f"manylinux_{glibc[0]}_{glibc[1]}_x86_64"


def _compile(build: ModuleType, variants: Sequence[str], folder: Path) -> list[Path]:
    """Compile the variants in parallel. Raises KernelsUnavailable."""
    paths = {variant: folder / build.library_name(variant) for variant in variants}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(build.compile_to, paths.values(), paths))
    return list(paths.values())


def _load_module(path: Path) -> ModuleType:
    """Import a file that is not in an installed package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
