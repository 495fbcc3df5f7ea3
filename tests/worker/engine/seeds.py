"""Runs a random workload for many seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def for_each_seed(
    config: pytest.Config, run_workload: Callable[[int], None], *, default: int, exhaustive: int
) -> None:
    """Run the ``default`` number of seeds, or all with --exhaustive. A failure names its seed."""
    for seed in range(exhaustive if config.getoption("exhaustive") else default):
        try:
            run_workload(seed)
        except Exception as error:  # noqa: PERF203
            raise AssertionError(f"the workload of seed {seed} fails: {error}") from error
