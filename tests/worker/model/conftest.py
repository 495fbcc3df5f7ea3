from __future__ import annotations

import pytest
import torch
from llava_worker.model.cpu.build import VARIANTS, KernelsUnavailable
from llava_worker.model.cpu.load import capabilities, load, variant_for
from llava_worker.model.cpu.native import NativeKernels


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread. More threads do not help with small matrices and are slow on shared cores."""
    torch.set_num_threads(1)


def runnable_variants() -> list[str]:
    try:
        best = variant_for(capabilities())
    except KernelsUnavailable:
        return []
    return list(VARIANTS)[list(VARIANTS).index(best) :]


@pytest.fixture(scope="module", params=runnable_variants() or [""])
def native(request: pytest.FixtureRequest) -> NativeKernels:
    """The C++ kernels, in each variant that this machine supports."""
    if not request.param:
        pytest.skip("the CPU does not support AVX2")
    try:
        return NativeKernels(load(request.param))
    except KernelsUnavailable as error:
        pytest.skip(str(error))
