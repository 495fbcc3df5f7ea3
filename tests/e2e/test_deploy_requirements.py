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

from tests.project_requirements import constraints, requirements, strings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "requirements"
FILES = sorted(path.stem for path in FOLDER.glob("*.txt"))
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


def test_these_tests_cover_every_lock_file() -> None:
    assert sorted([*LOCKS, "worker", "torch-cpu"]) == FILES


@pytest.mark.parametrize("name", FILES)
def test_locked_versions_are_those_of_the_constraints(name: str) -> None:
    assert locked(name)
    for package, version in locked(name).items():
        expected = constraints(ROOT / "constraints.txt").get(package, version)
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
    (requirement,) = map(Requirement, strings("requires"))
    assert requirement.specifier.contains(locked("build")[requirement.name])


def test_the_cpu_worker_has_the_packages_of_the_gpu_worker_except_those_for_cuda() -> None:
    cuda = (FOLDER / "worker-cuda.txt").read_text("utf-8")
    assert (FOLDER / "worker.txt").read_text("utf-8") == without_cuda(cuda)
    removed = set(locked("worker-cuda")) - set(locked("worker"))
    assert {"torch", "triton", "nvidia-cublas"} <= removed
    assert all(CUDA_ONLY.fullmatch(package) for package in removed)
    assert locked("torch-cpu")["torch"].public == str(locked("worker-cuda")["torch"])
