"""A rank whose steps can be captured on a CPU: ``python -m tests.worker.engine.parallel.reference_rank``.

Instead of CUDA graphs, function calls are replayed. If the environment variable LLAVA_TEST_FAILS_AT is set,
the capture with this number fails. LLAVA_TEST_FAULT is the fault of the one-shot all-reduce.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
from llava_worker.engine.parallel import rank_worker
from llava_worker.engine.parallel.rank_group import RankSetup
from llava_worker.engine.parallel.rank_worker import RankWorker
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.gpu.cuda_graphs import EagerPool, Replay
from llava_worker.model.one_shot_all_reduce import OneShotAllReduce, OneShotUnavailable
from torch import Tensor
from torch import distributed as dist

from tests.worker.model.reference_kernel import ReferenceKernel

MODULE = "tests.worker.engine.parallel.reference_rank"
FAILS_AT = "LLAVA_TEST_FAILS_AT"
FAULT = "LLAVA_TEST_FAULT"


class FailingPool(EagerPool):
    """Counts live graphs. Capture number ``fails_at`` fails."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.num_captured = self.num_live = 0

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        self.num_captured += 1
        if self.num_captured - 1 == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.num_live += 1
        return super().capture(compute)

    def release(self) -> None:
        self.num_live = 0


class GatheringOneShot(OneShotAllReduce):
    """A substitute on a CPU. It gathers, so it can only work if all ranks use it."""

    def __init__(self, fault: str, device: torch.device, dtype: torch.dtype) -> None:
        if fault == "unavailable":
            raise OneShotUnavailable("the test makes it unavailable")
        self.fault = fault
        self.buffer = torch.zeros(400, dtype=dtype, device=device)
        self.num_calls = 0

    def connect(self) -> None:
        if self.fault == "connection":
            raise RuntimeError("the test rejects the connection")

    def __call__(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        out = torch.empty_like(x)
        if self.fault != "unwritten":
            torch.sum(torch.stack(parts), 0, out=out)
        return out * 2 if self.fault == "wrong sums" else out


def make_worker(setup: RankSetup) -> RankWorker:
    fails_at = os.environ.get(FAILS_AT)
    return RankWorker(
        setup,
        choose_backend=lambda *_, **__: PagedBackend(ReferenceKernel()),
        pool=FailingPool(None if fails_at is None else int(fails_at)),
        make_one_shot=lambda device, dtype, _: GatheringOneShot(os.environ.get(FAULT, ""), device, dtype),
    )


if __name__ == "__main__":
    status = rank_worker.main(make_worker)
    sys.stderr.flush()
    os._exit(status)
