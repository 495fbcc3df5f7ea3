"""The extra for GPUs contains only packages that pip can install without preparation."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.utils import canonicalize_name

from tests.project_requirements import constraints, requirements

ROOT = Path(__file__).parents[1]
TESTED = constraints(ROOT / "constraints.txt")
# From setup.py of flash-attn 2.8, which imports some of them only to compile.
FLASH_ATTN_BUILD = {"ninja", "packaging", "psutil", "setuptools", "wheel"}


def test_the_packages_of_the_extra_gpu_have_been_installed_and_tested() -> None:
    """flash-attn cannot be one of them: its build requires torch, which pip does not make available to it."""
    assert {canonicalize_name(each.name) for each in requirements("gpu")} <= TESTED.keys()


def test_the_documented_installation_of_flash_attn_includes_all_packages_that_its_build_imports() -> None:
    """Without build isolation, pip does not install them."""
    page = (ROOT / "docs" / "deploy" / "gpus.md").read_text("utf-8")
    match = re.search(
        r"^pip install ('llava-serve\[gpu\]' .+)\npip install --no-build-isolation flash-attn$", page, re.M
    )
    assert match is not None
    assert set(match[1].split()) == {"'llava-serve[gpu]'", *FLASH_ATTN_BUILD}
