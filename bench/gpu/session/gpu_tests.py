"""Stage 4: the tests in tests/gpu, which use the tiny model and the kernels with the sizes of real models."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.gpu.session.measurement import CheckFailed, Measurement, NotApplicable
from bench.gpu.session.setup import Setup
from bench.record import ROOT

__all__ = ["measurements"]

_OUTCOME = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")
# The options in pyproject.toml name plugins that may not be installed.
_OPTIONS = ("-o", "addopts=", "--disable-plugin-autoload", "-p", "timeout", "-p", "no:cacheprovider")
_FORMAT = ("--import-mode=importlib", "-v", "--tb=short")


def measurements(setup: Setup) -> list[Measurement]:
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    return [
        Measurement(path.stem, partial(_run, str(path.relative_to(ROOT)), setup), needs_s=20, limit_s=120)
        for path in files
    ]


def _run(path: str, setup: Setup) -> Iterator[dict[str, Any]]:
    """Run the tests of a file. Each failure is written at once."""
    if setup.is_rehearsal:
        raise NotApplicable("These tests require a GPU.")
    if importlib.util.find_spec("pytest_timeout") is None:
        raise CheckFailed("pytest-timeout is not installed. Run: pip install pytest-timeout")
    counts: dict[str, int] = {}
    command = [sys.executable, "-m", "pytest", *_OPTIONS, *_FORMAT, path]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            found = _OUTCOME.match(line)
            if found is None:
                continue
            name, outcome = found.groups()
            counts[outcome.lower()] = counts.get(outcome.lower(), 0) + 1
            if outcome in ("FAILED", "ERROR"):
                yield {"failed_test": name}
    yield {"counts": counts}
    if process.returncode:
        num_failed = counts.get("failed", 0) + counts.get("error", 0)
        raise CheckFailed(f"{num_failed} tests failed; pytest exited with status {process.returncode}.")
