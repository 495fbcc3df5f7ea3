"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["package_version"]


def package_version() -> str:
    """Return the version of llava-serve, or "0.0.0" if it runs from a source tree without being installed."""
    try:
        return version("llava-serve")
    except PackageNotFoundError:
        return "0.0.0"
