"""The environment with lmms-eval, in ``.venv/lmms-eval``. It imports torch from the project's environment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from llava_cli.evaluation.environment import REQUIREMENTS

from tests.interop.environments import ROOT, RegistryUnreachableError, install_python

__all__ = ["lmms_python"]


def lmms_python() -> Path:
    """Return the interpreter. Create the environment unless it is current. Skip if that is not possible."""
    folder = ROOT / ".venv" / "lmms-eval"
    installed = folder / "installed-requirements.txt"
    if not installed.exists() or installed.read_bytes() != REQUIREMENTS.read_bytes():
        try:
            install_python(folder, REQUIREMENTS, uses_project=True)
        except RegistryUnreachableError as error:
            pytest.skip(str(error))
        shutil.copy(REQUIREMENTS, installed)
    return folder / "bin" / "python"
