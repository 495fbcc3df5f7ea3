"""One of several controllers that share a port, as a process that ``process_group`` has started.

python -m llava_server.controller_process '{"index": 0, "port": 8000, ...}' [FLAG]...
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import msgspec

from llava_server.log_format import configure_logging
from llava_server.serve import serve
from llava_server.settings import load_settings

__all__ = ["ControllerConfig", "ReadyMessage"]

_PR_SET_PDEATHSIG = 1


class ControllerConfig(msgspec.Struct, frozen=True):
    """The controller with this index, counted from 0.

    Once it serves requests, it writes a `ReadyMessage` to the file descriptor ``ready_fd`` and closes it. If
    the process ``parent_pid`` exits, it shuts down.
    """

    index: int
    port: int
    ready_fd: int
    parent_pid: int


class ReadyMessage(msgspec.Struct, frozen=True):
    """The URLs of the API and of the admin port."""

    url: str
    admin_url: str | None


def main(config: ControllerConfig, args: list[str]) -> int:
    """Serve until SIGTERM and return the exit status."""
    _shut_down_with_parent(config.parent_pid)
    settings = load_settings(args)
    admin_port = settings.admin_port and settings.admin_port + config.index
    settings = settings.model_copy(update={"port": config.port, "admin_port": admin_port})
    configure_logging(settings.log_level, settings.log_format, process=config.index)

    os.set_inheritable(config.ready_fd, False)  # by the image decoders

    def report_ready(url: str, admin_url: str | None) -> None:
        os.write(config.ready_fd, msgspec.json.encode(ReadyMessage(url, admin_url)))
        os.close(config.ready_fd)

    return serve(settings, report_ready, is_shared=True)


def _shut_down_with_parent(parent_pid: int) -> None:
    """Receive SIGTERM when the parent exits, which only Linux supports."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # the parent exited before the signal was requested
            sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(msgspec.json.decode(sys.argv[1], type=ControllerConfig), sys.argv[2:]))
