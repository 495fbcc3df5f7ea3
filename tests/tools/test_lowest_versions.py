"""``make lowest`` tests exactly the lower bounds in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from lock_requirements import LOWEST_EXTRAS, UNTESTED
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.project_requirements import constraints, requirements

ROOT = Path(__file__).parents[2]
LOWEST = constraints(ROOT / "constraints-lowest.txt")
TESTED = [each for each in requirements(*LOWEST_EXTRAS) if each.name not in UNTESTED]


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    return bound


@pytest.mark.parametrize("requirement", TESTED, ids=str)
def test_the_lowest_version_that_is_tested_is_the_lower_bound(requirement: Requirement) -> None:
    assert LOWEST[canonicalize_name(requirement.name)] == lower_bound(requirement), "run make lock"


def test_make_lowest_compiles_no_kernels() -> None:
    command = ["make", "--dry-run", "--always-make", "lowest"]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    builds = [line for line in plan.splitlines() if re.search(r"pip .*install .*(\s|')\.(\[|\s|$)", line)]
    assert len(builds) == 2
    assert all(line.startswith("LLAVA_BUILD_KERNELS=none ") for line in builds)


def test_all_direct_requirements_except_torch_are_tested() -> None:
    assert {each.name for each in TESTED} >= {"httpx2", "pydantic", "rich", "typer", "redis", "fastapi"}
    assert {"torch"} == UNTESTED
    assert not LOWEST.keys() & UNTESTED
