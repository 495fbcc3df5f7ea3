"""The requirements in pyproject.toml, and the versions in constraint files."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

__all__ = ["constraints", "requirements", "strings"]

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_MARKERS = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.13"}


def strings(name: str) -> list[str]:
    """Return the strings in a list of pyproject.toml. tomllib requires Python 3.11."""
    text = _PYPROJECT.read_text("utf-8")
    (items,) = re.findall(rf"^{name} = \[(.*?)\](?: #.*)?$", text, re.MULTILINE | re.DOTALL)
    # Some brackets and quotation marks are in comments.
    return re.findall(r'"([^"]+)"', re.sub(r"#.*", "", items))


def requirements(*extras: str) -> list[Requirement]:
    """Return the project's requirements with these extras on Linux, without the project itself."""
    found = strings("dependencies")
    waiting = list(extras)
    while waiting:
        for item in strings(waiting.pop()):
            own = re.fullmatch(r"llava-serve\[(.+)\]", item)
            if own:
                waiting += own[1].split(",")
            else:
                found.append(item)
    parsed = [Requirement(item) for item in found]
    return [item for item in parsed if item.marker is None or item.marker.evaluate(_MARKERS)]


@cache
def constraints(path: Path) -> dict[str, Version]:
    """Return the version of each package in a constraint file."""
    lines = path.read_text("utf-8").splitlines()
    pairs = [re.split("==| ", line)[:2] for line in lines if re.match(r"\w", line)]
    return {canonicalize_name(name): Version(version) for name, version in pairs}
