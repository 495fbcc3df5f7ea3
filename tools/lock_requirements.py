"""Write the lock files in ``deploy/requirements``, from which the images install their dependencies.

Each file contains exact versions and the hashes of all files that PyPI offers for them. Versions come from
``constraints.txt``; other versions change only with ``--upgrade``. Usage: ``make lock [ARGS=--upgrade]``.

``constraints-lowest.txt`` contains the lower bounds in ``pyproject.toml``, and for the other packages the
newest versions that are compatible with them and with Python 3.10. It does not contain torch, whose old
versions are on PyPI only as CUDA builds with gigabytes of dependencies.

The CPU build of torch is not on PyPI. Its hashes are in ``torch-cpu.txt``, which this program does not
change. Copy them from https://download.pytorch.org/whl/cpu/torch/ when you change the version of torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "requirements"
IMAGES = ("--python-version", "3.13", "--python-platform", "x86_64-manylinux_2_28")
# Name of the lock file: (requirements or extras, options of uv).
LOCKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "build": ("hatchling", IMAGES),
    "server": (".[server]", IMAGES),
    "worker-cuda": (".[worker,hub]", IMAGES),
    "supply-chain": ("uv pip-audit cyclonedx-bom", ("--universal", "--python-version", "3.11")),
}
# The worker with the CPU build of torch, which has no dependencies in addition to those of the CUDA build.
WORKER = "worker"
LOWEST_EXTRAS = ("all", "otel")
UNTESTED = frozenset({"torch"})  # packages of these extras whose lower bounds are not tested
CUDA_ONLY = re.compile(r"torch|triton|(nvidia|cuda)-.+")


def lock(name: str, *arguments: str) -> None:
    """Resolve one lock file with uv. Raises CalledProcessError."""
    requirements, options = LOCKS[name]
    extras = re.fullmatch(r"\.\[(.+)\]", requirements)
    source = ["pyproject.toml", *(f"--extra={extra}" for extra in extras[1].split(","))] if extras else ["-"]
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", *source, "--quiet", "--generate-hashes"),
            *("--constraint", "constraints.txt", "--index-url", "https://pypi.org/simple", "--no-annotate"),
            *("--custom-compile-command", "make lock", "--output-file", str(FOLDER / f"{name}.txt")),
            *options,
            *arguments,
        ],
        cwd=ROOT,
        input="\n".join(requirements.split()),
        text=True,
        check=True,
    )


def lock_lowest() -> None:
    """Resolve the lowest versions of all direct dependencies with uv. Raises CalledProcessError."""
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-annotate"),
            *(f"--extra={extra}" for extra in LOWEST_EXTRAS),
            *("--resolution", "lowest-direct", "--python-version", "3.10", "--excludes", "-"),
            *("--index-url", "https://pypi.org/simple", "--custom-compile-command", "make lock"),
            *("--output-file", "constraints-lowest.txt"),
        ],
        cwd=ROOT,
        input="\n".join(UNTESTED),
        text=True,
        check=True,
    )


def without_cuda(text: str) -> str:
    """Return a lock file without torch and the packages that only its CUDA build requires."""
    head, *entries = re.split(r"^(?=[a-zA-Z0-9])", text, flags=re.MULTILINE)
    return head + "".join(entry for entry in entries if not CUDA_ONLY.fullmatch(entry.split("==")[0]))


if __name__ == "__main__":
    for lock_name in LOCKS:
        lock(lock_name, *sys.argv[1:])
    lock_lowest()
    cuda = (FOLDER / "worker-cuda.txt").read_text("utf-8")
    (FOLDER / f"{WORKER}.txt").write_text(without_cuda(cuda), "utf-8")
