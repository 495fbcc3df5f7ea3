"""Weight loading progress on a terminal and in a log."""

from __future__ import annotations

import io
import logging

import pytest
from llava_worker.load_progress import LoadProgress

TOTAL = 10 << 30


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_progress_bar_that_ends_full() -> None:
    screen = Terminal()
    progress = LoadProgress(screen)
    for step in range(1001):
        progress(TOTAL * step // 1000, TOTAL, step)
    frames = screen.getvalue().split("\r")[1:]
    assert len(frames) == 31
    assert frames[-1] == f"loading [{'#' * 30}] 10.00 of 10.00 GiB, 1000 tensors\n"


def test_a_log_gets_one_line_per_ten_percent_and_no_bar(caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    progress = LoadProgress(screen)
    with caplog.at_level(logging.INFO):
        for step in range(1001):
            progress(TOTAL * step // 1000, TOTAL, step)
    assert screen.getvalue() == ""
    assert len(caplog.records) == 11
    assert caplog.messages[-1] == "loading weights: 100%, 10.00 of 10.00 GiB, 1000 tensors"


def test_progress_of_an_empty_model_is_complete() -> None:
    screen = Terminal()
    LoadProgress(screen)(0, 0, 0)
    assert screen.getvalue().endswith("\n")
