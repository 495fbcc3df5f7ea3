"""The extra for GPUs contains only packages that pip can install without preparation."""

from __future__ import annotations

from pathlib import Path

from packaging.utils import canonicalize_name

from tests.project_requirements import constraints, requirements

TESTED = constraints(Path(__file__).parents[1] / "constraints.txt")


def test_the_packages_of_the_extra_gpu_have_been_installed_and_tested() -> None:
    """flash-attn cannot be one of them: its build requires torch, which pip does not make available to it."""
    assert {canonicalize_name(each.name) for each in requirements("gpu")} <= TESTED.keys()
