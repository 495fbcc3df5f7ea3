"""What holds for every test."""

from __future__ import annotations

import signal

import pytest


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: Ctrl-C would do nothing
    # in the programs that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--api-cases", type=int, default=150, help="requests that the OpenAPI document is tried with"
    )
