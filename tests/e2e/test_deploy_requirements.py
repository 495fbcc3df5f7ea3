"""The lock files of the images agree with pyproject.toml and constraints.txt."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from lock_requirements import CUDA_ONLY, LOCKS, without_cuda
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "requirements"
FILES = sorted(path.stem for path in FOLDER.glob("*.txt"))
MARKERS = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.13"}
ENTRY = re.compile(
    r"^([a-z0-9-]+)==([\w.+]+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE
)


@cache
def locked(name: str) -> dict[str, Version]:
    """Return the packages of a lock file. Each must have at least one hash."""
    text = (FOLDER / f"{name}.txt").read_text("utf-8")
    entries = ENTRY.findall(text)
    rest = [line for line in ENTRY.sub("", text).splitlines() if line and not line.startswith("#")]
    assert rest == [], f"{name}.txt: entries without a hash"
    return {package: Version(version) for package, version, _ in entries}


@cache
def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def _strings(text: str, start: str) -> list[str]:
    """Return the strings of a list in pyproject.toml. tomllib requires Python 3.11."""
    (items,) = re.findall(rf"^{start} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"([^"]+)"', items)


def requirements(*extras: str) -> list[Requirement]:
    """Return the direct requirements of the project with these extras on an image's platform."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    found = _strings(text, "dependencies")
    waiting = list(extras)
    while waiting:
        for item in _strings(text, waiting.pop()):
            own = re.fullmatch(r"llava-serve\[(.+)\]", item)
            if own:
                waiting += own[1].split(",")
            else:
                found.append(item)
    parsed = [Requirement(item) for item in found]
    return [item for item in parsed if item.marker is None or item.marker.evaluate(MARKERS)]


def test_these_tests_cover_every_lock_file() -> None:
    assert sorted([*LOCKS, "worker", "torch-cpu"]) == FILES


@pytest.mark.parametrize("name", FILES)
def test_locked_versions_are_those_of_the_constraints(name: str) -> None:
    assert locked(name)
    for package, version in locked(name).items():
        expected = constraints().get(package, version)
        assert version.public == str(expected), f"{package}: run make lock"


@pytest.mark.parametrize(
    ("files", "extras"),
    [
        (["server"], ["server"]),
        (["worker", "torch-cpu"], ["worker", "hub"]),
        (["worker-cuda"], ["worker", "hub"]),
    ],
    ids=lambda value: "+".join(value),
)
def test_every_direct_requirement_is_locked(files: list[str], extras: list[str]) -> None:
    packages = {package: version for name in files for package, version in locked(name).items()}
    for requirement in requirements(*extras):
        version = packages.get(canonicalize_name(requirement.name))
        assert version, f"{requirement}: run make lock"
        assert requirement.specifier.contains(version), f"{requirement}: locked to {version}"


def test_the_build_backend_is_locked() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    (requirement,) = map(Requirement, _strings(text, "requires"))
    assert requirement.specifier.contains(locked("build")[requirement.name])


def test_the_cpu_worker_has_the_packages_of_the_gpu_worker_except_those_for_cuda() -> None:
    cuda = (FOLDER / "worker-cuda.txt").read_text("utf-8")
    assert (FOLDER / "worker.txt").read_text("utf-8") == without_cuda(cuda)
    removed = set(locked("worker-cuda")) - set(locked("worker"))
    assert {"torch", "triton", "nvidia-cublas"} <= removed
    assert all(CUDA_ONLY.fullmatch(package) for package in removed)
    assert locked("torch-cpu")["torch"].public == str(locked("worker-cuda")["torch"])
