"""Runs a random workload for many seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

NUM_DEFAULT_SEEDS = 200


def for_each_seed(config: pytest.Config, run_workload: Callable[[int], None], *, num_seeds: int) -> None:
    """Run the workload with the first 200 seeds, or with all seeds if --exhaustive is set.

    Errors include the seed.
    """
    is_exhaustive = config.getoption("exhaustive")
    for seed in range(num_seeds if is_exhaustive else min(num_seeds, NUM_DEFAULT_SEEDS)):
        try:
            run_workload(seed)
        except Exception as error:  # noqa: PERF203
            raise AssertionError(f"The workload with seed {seed} failed: {error}") from error
