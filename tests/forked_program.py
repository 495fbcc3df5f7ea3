"""A program for the tests of ForkServer. It describes its process. If WAIT is set, it waits for a signal."""

from __future__ import annotations

import json
import os
import signal
import sys

if __name__ == "__main__":
    process = {"argv": sys.argv, "folder": os.getcwd(), "variables": dict(os.environ), "pid": os.getpid()}
    print(json.dumps(process), flush=True)  # noqa: T201 (its output is the log)
    if "WAIT" in os.environ:
        signal.pause()
    sys.exit(int(os.environ["STATUS"]))
