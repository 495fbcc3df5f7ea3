"""What holds for every test."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Triton decides when it is imported, which may be soon: without a GPU its kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: Ctrl-C would do nothing
    # in the programs that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Whoever wants a door that asks for keys says so; tests of the default take the variable away.
    os.environ["LLAVA_AUTH"] = "false"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--api-cases", type=int, default=150, help="requests that the OpenAPI document is tried with"
    )
