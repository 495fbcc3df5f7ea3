"""Runs lmms-eval in its own environment as a child process, and reads its events."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from llava_client.errors import ConfigurationError, LlavaError

from llava_cli.evaluation.lmms_harness.plan import Plan, write_plan

__all__ = ["HarnessError", "HarnessProcess"]

_PACKAGE = Path(__file__).with_name("lmms_harness")
# Appended to the module search path, so that the other modules in the folder do not hide installed packages.
_PROGRAM = (
    f"import runpy, sys; sys.path.append({str(_PACKAGE.parent)!r}); "
    f"runpy.run_module({_PACKAGE.name!r}, run_name='__main__', alter_sys=False)"
)


class HarnessError(LlavaError):
    """lmms-eval ended with an unexpected error."""


class HarnessProcess:
    """The process. It exits when this process exits, because its stdin is then closed."""

    def __init__(self, python: Path, plan: Plan, variables: Mapping[str, str]) -> None:
        path = Path(plan.output, "plan.json")
        write_plan(plan, path)
        self._log = Path(plan.output, "lmms-eval.log")
        self._process = subprocess.Popen(
            [str(python), "-c", _PROGRAM, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", **variables},
        )

    def follow(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Call ``on_event`` for each event until the process exits.

        Raises ConfigurationError if lmms-eval reports an invalid task or dataset, and HarnessError if it
        crashes.
        """
        is_done = False
        for line in _stream(self._process.stdout):
            event = json.loads(line)
            if event["event"] == "error":
                raise ConfigurationError(event["message"])
            is_done = is_done or event["event"] in ("done", "tasks")
            on_event(event)
        if self._process.wait() != 0 or not is_done:
            raise HarnessError(f"lmms-eval failed: {self._last_line()} The log is {str(self._log)!r}.")

    def stop(self) -> None:
        """Kill the process if it is running, and wait until it has exited."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            _stream(pipe).close()

    def kill(self) -> None:
        """Kill the process. Can be called by another thread."""
        self._process.kill()

    def _last_line(self) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output.")


def _stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # opened in __init__
    return pipe
