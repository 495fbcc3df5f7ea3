"""Wheels contain compiled kernels, a correct platform tag, and otherwise a clear message."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from llava_worker.model.cpu.build import SOURCES, VARIANTS, KernelsUnavailable, library_name
from llava_worker.model.cpu.load import capabilities, load, variant_for

from hatch_build import platform_tag

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="kernels support Linux on x86-64"
)
# Writes the path of a compiled library, which the environment variable contains, instead of compiling.
COMPILER = """#!/bin/sh
for last; do :; done
cp "$COMPILED_LIBRARY" "$last"
"""

Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with only the files that the build hook needs."""
    folder = tmp_path / "project"
    for package in ("wire/llava_wire", "server/llava_server", "client/llava_client", "client/llava_cli"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
    shutil.copytree(
        SOURCES,
        folder / "worker" / "llava_worker" / "model" / "cpu",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def build(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build a wheel in ``dist``. The compiler copies a library that was compiled for this machine."""
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    try:
        compiled = load(variant_for(capabilities())).functions._name
    except KernelsUnavailable as error:
        pytest.skip(str(error))

    def run(
        kernels: str, *, target: str = "wheel", cxx: str | Path = compiler
    ) -> subprocess.CompletedProcess[str]:
        environment = {"LLAVA_BUILD_KERNELS": kernels, "CXX": str(cxx), "COMPILED_LIBRARY": compiled}
        return subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(tmp_path / "dist")],
            cwd=project,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def libraries(wheel: Path) -> set[str]:
    """Return the names of the compiled libraries in the package folder."""
    with zipfile.ZipFile(wheel) as archive:
        return {Path(name).name for name in archive.namelist() if name.endswith(".so")}


def the_wheel(tmp_path: Path) -> Path:
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    return wheel


def test_a_wheel_contains_all_variants_and_they_are_loaded_without_a_compiler(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build("required").returncode == 0
    wheel = the_wheel(tmp_path)

    assert wheel.name.endswith("-py3-none-manylinux_2_27_x86_64.whl")
    assert libraries(wheel) == {library_name(variant) for variant in VARIANTS}
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    monkeypatch.setenv("CXX", "no-such-compiler")
    shipped = tmp_path / "installed" / "llava_worker" / "model" / "cpu"
    library = load(variant_for(capabilities()), shipped=shipped, cache=tmp_path / "cache")
    assert library.source == "shipped"


def test_only_the_requested_variants_are_compiled(build: Build, tmp_path: Path) -> None:
    assert build("avx2,amx").returncode == 0
    assert libraries(the_wheel(tmp_path)) == {library_name("avx2"), library_name("amx")}


@pytest.mark.parametrize(
    ("kernels", "cxx", "message"),
    [
        ("none", "false", ""),
        ("auto", "no-such-compiler", "compiler no-such-compiler not found"),
        ("auto", "false", "failed"),
    ],
)
def test_without_compiled_kernels_the_wheel_is_pure(
    build: Build, tmp_path: Path, kernels: str, cxx: str, message: str
) -> None:
    done = build(kernels, cxx=cxx)
    assert done.returncode == 0
    assert the_wheel(tmp_path).name.endswith("-py3-none-any.whl")
    assert libraries(the_wheel(tmp_path)) == set()
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ("required", "cannot be compiled: compiler"),
        ("avx2", "cannot be compiled: compiler"),
        ("sse", "Use auto, required, none"),
    ],
)
def test_a_wheel_that_cannot_contain_the_required_kernels_is_not_built(
    build: Build, tmp_path: Path, kernels: str, message: str
) -> None:
    done = build(kernels, cxx="no-such-compiler")
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert not list(tmp_path.glob("dist/*.whl"))


def test_an_editable_installation_compiles_nothing(build: Build, tmp_path: Path) -> None:
    assert build("required", target="wheel:editable", cxx="false").returncode == 0
    assert libraries(the_wheel(tmp_path)) == set()


def test_the_source_distribution_contains_everything_that_compilation_needs(
    build: Build, tmp_path: Path
) -> None:
    assert build("required", target="sdist", cxx="false").returncode == 0
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    unpacked = {path.name for path in (folder / "worker" / "llava_worker" / "model" / "cpu").iterdir()}
    assert unpacked >= {path.name for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h", ".py")}
    assert (folder / "hatch_build.py").is_file()


@pytest.mark.parametrize(
    ("versions", "tag"),
    [
        (b"GLIBC_2.2.5\0GLIBCXX_3.4\0CXXABI_1.3.9\0GCC_3.0\0GOMP_4.5\0", "manylinux_2_27_x86_64"),
        (b"GLIBC_2.14\0GLIBC_2.34\0", "manylinux_2_34_x86_64"),
        (b"GLIBC_2.27\0GLIBCXX_3.4.29\0", "linux_x86_64"),
        (b"GLIBC_2.27\0CXXABI_1.3.14\0", "linux_x86_64"),
    ],
)
def test_the_platform_tag_is_the_oldest_system_that_has_all_symbols(versions: bytes, tag: str) -> None:
    assert platform_tag([b"\x7fELF\0GLIBC_2.2.5\0", b"\x7fELF\0" + versions]) == tag
