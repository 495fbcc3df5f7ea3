"""Fixtures for the tests of kernels."""

from __future__ import annotations

import pytest
from llava_worker.model.kernels.fused import FusedKernels


@pytest.fixture(scope="module")
def fused() -> FusedKernels:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    return FusedKernels()
