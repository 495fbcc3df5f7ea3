from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread. More threads do not help with small matrices and are slow on shared cores."""
    torch.set_num_threads(1)
