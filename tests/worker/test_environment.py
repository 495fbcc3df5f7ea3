"""The environment variables that the package sets before torch reads them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = "import llava_worker, os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_waiting_threads_sleep_early_unless_the_environment_says_otherwise(
    environment: dict[str, str], expected: str
) -> None:
    others = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=others | environment, check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == expected
