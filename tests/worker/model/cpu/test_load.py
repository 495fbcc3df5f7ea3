"""A shipped library of C++ kernels is preferred to compiling one, which is preferred to torch kernels."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from llava_worker.model.cpu.build import KernelsUnavailable, library_name
from llava_worker.model.cpu.load import capabilities, load, variant_for
from llava_worker.model.cpu.native import NativeKernels, cpu_kernels
from llava_worker.model.kernels.interface import KernelOrigin


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library for this machine. In the rest of the test, no compiler is available."""
    try:
        library = load(variant_for(capabilities()))
    except KernelsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("CXX", "no-such-compiler")
    return Path(library.functions._name)


@pytest.fixture
def variant() -> str:
    return variant_for(capabilities())


def test_a_shipped_library_is_loaded_without_a_compiler(compiled: Path, variant: str, tmp_path: Path) -> None:
    shipped, cache = tmp_path / "shipped", tmp_path / "cache"
    shipped.mkdir()
    shutil.copy(compiled, shipped / library_name(variant))

    library = load(variant, shipped=shipped, cache=cache)

    assert (library.source, library.variant) == ("shipped", variant)
    assert NativeKernels(library).origin == KernelOrigin(source="shipped", variant=variant)
    assert not cache.exists()


def test_a_shipped_library_of_other_sources_is_not_loaded(
    compiled: Path, variant: str, tmp_path: Path
) -> None:
    shutil.copy(compiled, tmp_path / f"kernels-{variant}-0123456789abcdef.so")

    with pytest.raises(KernelsUnavailable, match="no-such-compiler not found"):
        load(variant, shipped=tmp_path, cache=tmp_path / "cache")


def test_if_a_shipped_library_cannot_be_loaded_the_compiled_one_is_used(
    compiled: Path, variant: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / library_name(variant)).write_bytes(b"not a library")

    with caplog.at_level(logging.WARNING):
        library = load(variant, shipped=tmp_path, cache=compiled.parent)

    assert library.source == "compiled"
    assert "cannot be loaded" in caplog.text


def test_the_reason_for_torch_kernels_is_reported(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    kernels = cpu_kernels.__wrapped__()

    assert kernels.origin == KernelOrigin(
        source="torch", fallback_reason="compiler no-such-compiler not found"
    )
