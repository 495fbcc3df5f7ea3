"""Fixtures and a marker for tests that require an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
# Triton 3.9 emits this warning when it compiles the first kernel. Version 3.10 will change a default.
ALLOWED_WARNING = "ignore:TRITON_DEFAULT_FP_FUSION is unset:UserWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings(ALLOWED_WARNING))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda")
