"""Sends events to the command that started this process: one JSON object per line on its stdout.

All other output, including that of lmms-eval, goes to a log file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, NoReturn

__all__ = ["Events", "exit_with_parent"]


class Events:
    """The stdout that the process was started with.

    It is stored as a file descriptor, because ``datasets`` pickles what the functions of a task refer to.
    """

    def __init__(self, log: str) -> None:
        """Redirect stdout and stderr to the file ``log``."""
        self._pipe = os.dup(1)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        sys.stdout.flush()
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)

    def send(self, event: str, **fields: Any) -> None:
        remaining = json.dumps({"event": event, **fields}).encode() + b"\n"
        while remaining:
            remaining = remaining[os.write(self._pipe, remaining) :]

    def fail(self, message: str) -> NoReturn:
        """Report the error with which the evaluation ends, and exit.

        SystemExit is not caught by the retries in lmms-eval.
        """
        self.send("error", message=message)
        raise SystemExit(1)


def exit_with_parent() -> None:
    """Exit when stdin is closed, which happens when the command that started this process exits.

    Otherwise, the process would continue without the server after the command was killed.
    """

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock would prevent a normal exit
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
