"""Runs a program that ends with the process that started it, even if that one is killed with SIGKILL.

    python -I -S parent_death_signal.py PARENT_PID COMMAND [ARGUMENT]...

A script of its own and not a ``preexec_fn``: nothing of the parent's threads or locks is in this process. It
becomes the command by exec, which keeps the death signal. Linux only; elsewhere it just becomes the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_EXIT_NOT_FOUND = 127  # as a shell says it


def main(arguments: list[str]) -> None:
    """Tie this process to ``arguments[0]``, its parent's pid, and become the rest."""
    parent, *command = arguments
    if sys.platform == "linux":
        # SIGKILL: without the parent there is no Redis either, so there is nothing to drain to.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before the signal was set
            sys.exit(0)
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        sys.stderr.write(f"cannot start {command[0]}: {exc.strerror}\n")
        sys.exit(_EXIT_NOT_FOUND)


if __name__ == "__main__":
    main(sys.argv[1:])
