"""Communication of tensor-parallel ranks in CUDA graphs. Most tests use one rank and need one GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llava_worker
import pytest
import torch
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool
from llava_worker.model.one_shot_all_reduce import OneShotAllReduce
from llava_worker.model.tensor_parallel import TensorParallel
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan
from torch import distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

TINY = Path(llava_worker.__file__).parent / "tiny"
DTYPES = [torch.float16, torch.bfloat16, torch.float32]

# Prints the output tokens. Each engine needs a process of its own, because torch has one default group.
_GENERATE = """
import sys
from pathlib import Path
from llava_worker.engine import Sequence
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
size, use_graphs = int(sys.argv[2]), sys.argv[3] == "graphs"
config = EngineConfig(Path(sys.argv[1]), device="cuda", precision="fp32", tensor_parallel_size=size,
                      use_cuda_graphs=use_graphs, use_speculation=False, kv_cache_bytes=64 << 20)
engine, _ = build_engine(config)
assert engine.has_cuda_graphs == use_graphs
for number in range(5):
    engine.add(Sequence(seq_id=str(number), prompt_ids=[1, 7, 5, 9 + number], max_new_tokens=16))
tokens = {}
while engine.num_sequences:
    for output in engine.step():
        tokens.setdefault(output.seq_id, []).append(output.token_id)
print(sorted(tokens.items()))
"""


@pytest.fixture
def group(device: torch.device) -> Iterator[torch.device]:
    """A process group that consists of this process."""
    own = torch.device("cuda:0")
    torch.cuda.set_device(own)
    dist.init_process_group("nccl", store=HashStore(), rank=0, world_size=1, device_id=own)
    yield own
    dist.destroy_process_group()


@torch.inference_mode()
def test_communication_with_nccl_can_be_captured(group: torch.device) -> None:
    ranks = TensorParallel(0, 1, device=group)
    ranks.size = 2  # otherwise, nothing would be sent
    x = torch.zeros(3, 4096, dtype=torch.float16, device=group)

    def compute() -> torch.Tensor:
        ranks.broadcast(x)
        return ranks.all_reduce(x + 1)

    pool = CudaGraphPool(group)
    pool.warm_up(compute)
    out, replay = pool.capture(compute)
    assert ranks.agree(True) and not ranks.agree(False)
    for number in range(3):
        x.fill_(number)
        replay()
        torch.testing.assert_close(out, torch.full_like(out, number + 1))
    pool.release()  # NCCL waits for the graphs before it destroys the communicator


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_one_shot_kernel_returns_the_sum_also_in_a_graph(group: torch.device, dtype: torch.dtype) -> None:
    one_shot = OneShotAllReduce(group, dtype, range(1))
    one_shot.connect()
    for num_rows in (1, 2, 3, 8):
        x = torch.randn(num_rows, 4096, device=group).to(dtype)
        with uninitialized_memory_is_nan():
            torch.testing.assert_close(one_shot(x), x)
    pool = CudaGraphPool(group)
    pool.warm_up(lambda: one_shot(one_shot(x)))
    out, replay = pool.capture(lambda: one_shot(one_shot(x)))
    for _ in range(3):
        x.normal_()
        replay()
        torch.testing.assert_close(out, x)
    pool.release()


def generate(num_ranks: int, graphs: str) -> str:
    command = [sys.executable, "-c", _GENERATE, str(TINY), str(num_ranks), graphs]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="requires two GPUs")
@pytest.mark.parametrize("graphs", ["graphs", "eager"])
def test_two_gpus_return_the_tokens_of_one_gpu(graphs: str) -> None:
    assert generate(2, graphs) == generate(1, graphs)
