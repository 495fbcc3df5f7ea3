"""``python -m llava_worker``: run a worker until SIGTERM or Ctrl-C. See `worker_process`."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]


def main() -> int:
    """Run the worker and return its exit status."""
    gc.disable()  # imports create no garbage, and searching for it would take 15% of the startup time
    from llava_worker.import_torch import load_library
    from llava_worker.settings import load_settings

    settings = load_settings(sys.argv[1:])
    if settings.model != "echo":
        load_library()  # while the following modules are imported
    from llava_worker.worker_process import run

    return run(settings)


if __name__ == "__main__":
    exit_status = main()
    from llava_worker.worker_process import exit_process

    exit_process(exit_status)
