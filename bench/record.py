"""Benchmark records: results with their date, command, commit, machine and package versions.

    write_record("gaps", results, settings={"model": "tiny"})   ->  bench/results/gaps.json

Records do not contain user names, host names or paths outside the repository.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

__all__ = [
    "RESULTS",
    "ROOT",
    "WORK",
    "command_line",
    "commit_of",
    "machine_facts",
    "make_record",
    "versions",
    "write_record",
]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"  # committed
WORK = ROOT / "bench" / "work"  # git-ignored: checkpoints, logs, virtual environments

_PACKAGES = ("llava-serve", "torch", "numpy", "redis", "fastapi", "uvicorn", "httpx2", "transformers")
_INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)  # names of flags in /proc/cpuinfo


def write_record(
    name: str,
    results: Any,
    *,
    settings: Mapping[str, Any] | None = None,
    packages: Sequence[str] = (),
    folder: Path = RESULTS,
) -> Path:
    """Write ``folder/name.json`` and return its path. An existing record is replaced.

    ``results`` and ``settings`` must be JSON-serializable. The versions of ``packages`` are recorded in
    addition to those of the default packages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = make_record(name, results, settings=settings, packages=packages)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def make_record(
    name: str, results: Any, *, settings: Mapping[str, Any] | None = None, packages: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the record as a JSON-serializable dictionary."""
    return {
        "name": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "commit": commit_of(ROOT),
        "machine": machine_facts(),
        "versions": versions(packages),
        "settings": dict(settings or {}),
        "results": results,
    }


def command_line() -> str:
    """Return the command line of this process, with paths relative to the root of the repository."""
    words = ["python", *sys.orig_argv[1:]]
    return " ".join(word.replace(f"{ROOT}/", "") for word in words)


def machine_facts() -> dict[str, Any]:
    """Return the properties of the machine that affect speed.

    ``load_average`` (1 minute) shows whether other programs were running.
    """
    cpu = _cpu_info()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cpu_family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "instructions": [name for name in _INSTRUCTION_SETS if name in flags],
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python, of the default packages and of ``packages``, if they are installed.

    If a package is installed more than once, its version is that of the first folder in ``sys.path``, from
    which Python imports it.
    """
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *packages):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cpu_info() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo, or {} if the file does not exist."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # do not import torch just for this
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def commit_of(checkout: Path) -> str:
    """Return the newest commit of the main branch in a checkout, with "+" if there are other changes.

    Commits of other branches would disappear from the history when these branches are rebased. Returns the
    current commit if there is no branch ``main``, and "unknown" outside a repository.
    """
    try:
        branch = next((each for each in ("main", "origin/main") if _has_branch(checkout, each)), "HEAD")
        commit = _git(checkout, "merge-base", "HEAD", branch)
        return commit[:12] + ("+" if _git(checkout, "diff", "--name-only", commit) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _has_branch(checkout: Path, name: str) -> bool:
    return bool(_git(checkout, "for-each-ref", f"refs/heads/{name}", f"refs/remotes/{name}"))


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout.strip()
