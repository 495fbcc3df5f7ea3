"""Virtual environments for the other servers, created on demand in ``bench/work/venv-NAME``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.record import ROOT, WORK
from bench.serving.target import Unavailable

__all__ = ["cpu_torch", "ensure_environment", "installed", "run_or_unavailable"]

_TAIL = 6  # number of output lines to report when a command fails


def ensure_environment(
    name: str,
    *installs: Sequence[str],
    without: Sequence[str] = (),
    patch: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Create the environment if it does not exist, and return its Python interpreter.

    Each of ``installs`` contains the arguments of a ``pip install`` command. The commands run in order. The
    packages in ``without`` are uninstalled afterwards. Finally, ``patch`` is called with the folder of the
    installed packages. Raises Unavailable if a command fails.
    """
    folder = WORK / f"venv-{name}"
    python = folder / "bin" / "python"
    done = folder / ".complete"
    if done.is_file():
        return python
    run_or_unavailable([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    for arguments in installs:
        run_or_unavailable([*pip, "install", "--quiet", *arguments])
    if without:
        run_or_unavailable([*pip, "uninstall", "--quiet", "--yes", *without])
    patch(next(folder.glob("lib/python*/site-packages")))
    done.touch()
    return python


def cpu_torch() -> str:
    """Return the pip requirement for torch without the CUDA libraries, as in the Makefile."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(pin for pin in pins if pin.startswith("torch==")) + "+cpu"


def installed(name: str, packages: Sequence[str]) -> Mapping[str, str]:
    """Return the package versions in the environment ``name``, or {} if it does not exist."""
    python = WORK / f"venv-{name}" / "bin" / "python"
    program = (
        "import importlib.metadata as m, json; "
        f"print(json.dumps({{n: m.version(n) for n in {list(packages)!r}}}))"
    )
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def run_or_unavailable(command: Sequence[str]) -> None:
    """Run a command. Raises Unavailable with the last lines of the output if the command fails."""
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        tail = [line for line in lines if not line.startswith("WARNING")][-_TAIL:]
        shown = " ".join(command[:6]).replace(f"{ROOT}/", "")  # no local paths in records
        raise Unavailable(f"`{shown} ...` failed: {' / '.join(tail)}")
