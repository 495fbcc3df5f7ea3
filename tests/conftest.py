"""What holds for every test."""

from __future__ import annotations

import os
import signal


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: Ctrl-C would do nothing
    # in the programs that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Whoever wants a door that asks for keys says so; tests of the default take the variable away.
    os.environ["LLAVA_AUTH"] = "false"
