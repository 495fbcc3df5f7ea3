"""Detects optional dependencies without importing them."""

from __future__ import annotations

import importlib.util

__all__ = ["install_line", "missing_modules"]

# These are import names, which can differ from the package names on PyPI.
_MODULES = {
    "server": ("redis", "msgspec", "pydantic_settings", "fastapi", "uvicorn", "PIL"),
    "worker": ("redis", "msgspec", "pydantic_settings", "numpy", "torch", "tokenizers", "safetensors"),
}
_UNUSED_BY_ECHO = ("torch", "numpy", "tokenizers", "safetensors")


def missing_modules(extra: str, *, model: str = "") -> list[str]:
    """Return the modules required by ``extra`` that are not installed.

    The "echo" model does not require PyTorch or the other model libraries.
    """
    unused = _UNUSED_BY_ECHO if model == "echo" else ()
    return [name for name in _MODULES[extra] if name not in unused and importlib.util.find_spec(name) is None]


def install_line(*extras: str) -> str:
    """Return the command that installs ``extras``."""
    return f"pip install 'llava-serve[{','.join(extras)}]'"
