"""Run a command that is killed when its parent process exits, even if the parent is killed with SIGKILL.

    python -I -S parent_death_signal.py PARENT_PID COMMAND [ARGUMENT]...

This is a separate script, because a ``preexec_fn`` could deadlock on locks that other threads of the parent
held during the fork. The script replaces itself with the command by calling exec, which preserves the parent
death signal. That signal exists only on Linux. On other systems, the script only runs the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_EXIT_NOT_FOUND = 127  # the exit status that shells use for a command that is not found


def main(arguments: list[str]) -> None:
    """Tie this process to the parent whose PID is ``arguments[0]``, then exec the remaining arguments."""
    parent, *command = arguments
    if sys.platform == "linux":
        # Use SIGKILL instead of SIGTERM. A graceful drain would fail, because Redis is killed at the same
        # time.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # the parent exited before the death signal was set
            sys.exit(0)
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        sys.stderr.write(f"Cannot start {command[0]}: {exc.strerror}.\n")
        sys.exit(_EXIT_NOT_FOUND)


if __name__ == "__main__":
    main(sys.argv[1:])
