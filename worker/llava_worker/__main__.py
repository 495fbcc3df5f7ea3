"""``python -m llava_worker``: run a worker until SIGTERM or Ctrl-C. See `worker_process`."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]


def main() -> int:
    """Run the worker and return its exit status."""
    gc.disable()  # imports create no garbage, and searching for it would take 15% of the startup time
    from llava_worker.settings import load_settings
    from llava_worker.worker_process import run

    return run(load_settings(sys.argv[1:]))


if __name__ == "__main__":
    exit_status = main()
    from llava_worker.worker_process import exit_process

    exit_process(exit_status)
