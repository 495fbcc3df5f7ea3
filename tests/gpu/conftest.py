"""Tests that need an NVIDIA GPU: ``python -m pytest tests/gpu`` there; elsewhere they skip and say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = "torch sees no CUDA device" if torch.version.cuda else "this torch was built without CUDA"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda")
