"""Create a separate environment for each client, with exactly the packages that the client pins.

The environments are in ``.venv/interop``, which ``make clean`` removes. They are reused until the pinned
packages change. Packages that a client excludes, such as torch, are imported from the project's environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.interop.catalog import Client

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv" / "interop"
UV = Path(sys.executable).with_name("uv")

# Parts of the messages with which uv and npm report that they did not reach the registry.
UNREACHABLE = ("error sending request", "dns error", "client error (Connect)", "ENOTFOUND", "ECONNREFUSED")


class RegistryUnreachableError(Exception):
    """The package registry cannot be reached, so the environment cannot be created."""


def environment(client: Client) -> Path:
    """Create the client's environment, unless it is current. Return its folder.

    Raises ``RegistryUnreachableError``, or ``RuntimeError`` with the output of uv or npm.
    """
    folder = ENVIRONMENTS / client.name
    lock = client.folder / ("package-lock.json" if client.is_node else "requirements.txt")
    installed = folder / "installed-lock"
    if installed.exists() and installed.read_bytes() == lock.read_bytes():
        return folder
    installed.unlink(missing_ok=True)
    if client.is_node:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(client.folder / name, folder)
        _install(["npm", "ci", "--no-audit", "--no-fund"], folder)
    else:
        install_python(folder, lock, uses_project=(client.folder / "excluded.txt").exists())
    shutil.copy(lock, installed)
    return folder


def install_python(folder: Path, lock: Path, *, uses_project: bool) -> None:
    """Create a Python environment with exactly the packages in ``lock``.

    With ``uses_project``, other packages are imported from the project's environment. Raises the same errors
    as ``environment``.
    """
    _install([str(UV), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], ROOT)
    _install([str(UV), "pip", "sync", "--quiet", "--python", str(folder), str(lock)], ROOT)
    if uses_project:
        [site_packages] = folder.glob("lib/python*/site-packages")
        (site_packages / "project.pth").write_text(sysconfig.get_path("purelib"))


def _install(command: list[str], folder: Path) -> None:
    variables = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    if any(part in result.stderr for part in UNREACHABLE):
        raise RegistryUnreachableError(f"{Path(command[0]).name} cannot reach the package registry")
    raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
