"""A measurement as a file: what was measured, where, with which versions, by which command, when.

    write_record("gaps", results, settings={"model": "tiny"})   ->  bench/results/gaps.json

A number without these is a rumour. Nothing here names a user, a host or a folder outside the repository.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

__all__ = [
    "RESULTS",
    "ROOT",
    "WORK",
    "command_line",
    "machine_facts",
    "make_record",
    "versions",
    "write_record",
]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"  # in the repository
WORK = ROOT / "bench" / "work"  # git-ignored: checkpoints, logs, other programs' environments

_PACKAGES = ("llava-serve", "torch", "numpy", "redis", "fastapi", "uvicorn", "httpx2", "transformers")
_FORMATS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")  # as /proc/cpuinfo says


def write_record(
    name: str,
    results: Any,
    *,
    settings: Mapping[str, Any] | None = None,
    packages: Sequence[str] = (),
    folder: Path = RESULTS,
) -> Path:
    """Write ``folder/name.json`` (made if missing, replaced if there) and say where it is.

    ``results`` and ``settings`` are anything that JSON knows; ``packages`` are further distributions whose
    versions matter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = make_record(name, results, settings=settings, packages=packages)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def make_record(
    name: str, results: Any, *, settings: Mapping[str, Any] | None = None, packages: Sequence[str] = ()
) -> dict[str, Any]:
    """The record as a value."""
    return {
        "name": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "commit": _commit(),
        "machine": machine_facts(),
        "versions": versions(packages),
        "settings": dict(settings or {}),
        "results": results,
    }


def command_line() -> str:
    """How this process was started, from the repository's root, without the interpreter's own path."""
    words = ["python", *sys.orig_argv[1:]]
    return " ".join(word.replace(f"{ROOT}/", "") for word in words)


def machine_facts() -> dict[str, Any]:
    """What of the machine decides speed. ``load_average`` (1 minute) tells whether it had other work."""
    cpu = _cpu_info()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cpu_family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "instructions": [name for name in _FORMATS if name in flags],
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Python's and those of the installed ones of our packages and ``packages``."""
    installed = {
        found.name.lower().replace("_", "-"): found.version for found in importlib.metadata.distributions()
    }
    wanted = [name for name in (*_PACKAGES, *packages) if name in installed]
    return {"python": platform.python_version(), **{name: installed[name] for name in wanted}}


def _cpu_info() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # a benchmark without torch shall not load it for this
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def _commit() -> str:
    """The commit, with "+" where the tree differs from it; "unknown" outside a repository."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
