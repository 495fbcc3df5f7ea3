"""``python -m llava_server``: serve until SIGTERM, then finish in-flight requests and exit with status 0.

With more than one process, this process only starts and supervises the controllers, which share its port.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the server and return the exit status.

    The status is 0 after a graceful shutdown, 1 after a failure and 2 if the settings are invalid.
    """
    gc.disable()  # imports create no garbage, and searching for it would take 15% of the startup time
    from llava_server.log_format import configure_logging
    from llava_server.process_group import run_process_group
    from llava_server.serve import announce, serve
    from llava_server.settings import load_settings

    args = sys.argv[1:] if args is None else args
    settings = load_settings(args)
    configure_logging(settings.log_level, settings.log_format)
    if settings.processes > 1:
        return run_process_group(settings, args)
    return serve(settings, lambda url, admin_url: announce(url, [admin_url]))


if __name__ == "__main__":
    sys.exit(main())
