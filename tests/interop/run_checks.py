"""Run checks of one client in the client's environment: python run_checks.py CHECKS.PY [NAME ...]

Each public function of the file is a check. Without names, all of them run. For each check, a line of JSON
with its name and its error (null if it passed) is written to standard output.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def checks(namespace: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the public functions that the file defines, in the order of their definition."""
    return {
        name: value
        for name, value in namespace.items()
        if inspect.isfunction(value) and value.__module__ == "checks" and not name.startswith("_")
    }


def error_of(check: Callable[[], Any]) -> str | None:
    """Run a check. Return the traceback if it fails."""
    try:
        if inspect.iscoroutinefunction(check):
            asyncio.run(check())
        else:
            check()
    except Exception:  # every error of a client is reported as its result
        return traceback.format_exc()
    return None


path, *names = sys.argv[1:]
sys.path.insert(0, str(Path(path).resolve().parent))
for name, check in checks(runpy.run_path(path, run_name="checks")).items():
    if names and name not in names:
        continue
    print(json.dumps({"check": name, "error": error_of(check)}), file=sys.__stdout__, flush=True)
