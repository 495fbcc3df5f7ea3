from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Matrices this small gain nothing from a second thread and lose much where cores are shared."""
    torch.set_num_threads(1)
