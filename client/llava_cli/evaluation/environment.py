"""The Python environment that has lmms-eval.

lmms-eval requires about a hundred packages, among them torch and transformers. They are installed in an
environment of their own, in the versions in ``requirements.txt``, without those packages that lmms-eval needs
only to run models itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import typer
from llava_client.errors import ConfigurationError

from llava_cli.file_lock import locked

__all__ = ["LMMS_EVAL", "REQUIREMENTS", "TORCH", "prepare_environment"]

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
LMMS_EVAL = "lmms-eval==0.7.3"  # as in the requirements
TORCH = "torch==2.13.0"  # not in the requirements, because each platform has builds with and without CUDA
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # without CUDA libraries, which are several gigabytes


def prepare_environment(python: Path | None) -> Path:
    """Return a Python interpreter that has lmms-eval.

    If ``python`` is None, use the environment in the user's cache folder, and create it if necessary. Raises
    ConfigurationError if ``python`` does not have the expected version, or if the installation fails.
    """
    if python is not None:
        return _checked(python)
    folder = _cache_folder() / "lmms-eval"
    folder.parent.mkdir(parents=True, exist_ok=True)
    marker = folder / "installed-requirements.txt"
    interpreter = folder / "bin" / "python"
    if _is_current(marker):
        return interpreter
    try:
        with locked(folder.with_suffix(".lock")):
            typer.echo(f"Installing {LMMS_EVAL} in {folder} (once, about 2 GB)", err=True)
            _install(folder, interpreter)
            shutil.copy(REQUIREMENTS, marker)
    except BlockingIOError as error:
        raise ConfigurationError(f"Another process is installing {str(folder)!r}. Wait for it.") from error
    return interpreter


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava-serve"


def _is_current(marker: Path) -> bool:
    return marker.exists() and marker.read_bytes() == REQUIREMENTS.read_bytes()


def _install(folder: Path, interpreter: Path) -> None:
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    install = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        # Without dependencies, which the requirements contain, so that only one package is looked up there.
        index = ["--extra-index-url", _CPU_INDEX, "--retries", "0", "--timeout", "20"]
        _run([*install, "--no-deps", f"{TORCH}+cpu", *index])
    except ConfigurationError:  # the index cannot be reached, or the platform has no other builds
        _run([*install, TORCH])
    _run([*install, "--no-deps", "-r", str(REQUIREMENTS)])


def _run(command: list[str]) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
        raise ConfigurationError(
            f"Cannot install {LMMS_EVAL}: {reason[0]} To use an existing environment, pass its interpreter "
            "as --python."
        )


def _checked(python: Path) -> Path:
    program = "from importlib.metadata import version; print('lmms-eval==' + version('lmms-eval'))"
    try:
        result = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigurationError(f"Cannot run --python {str(python)!r}: {error.strerror}.") from error
    found = result.stdout.strip() if result.returncode == 0 else "no lmms-eval"
    if found != LMMS_EVAL:
        raise ConfigurationError(
            f"--python {str(python)!r} has {found}, not {LMMS_EVAL}. Install it with: "
            f"{python} -m pip install {LMMS_EVAL}"
        )
    return python
