"""All ranks use the one-shot all-reduce for small tensors, or none of them does.

On a CPU, a substitute for the kernel gathers the tensors with gloo. If only one rank used it, the other one
would receive the wrong message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine.parallel.choose_all_reduce import choose_all_reduce
from llava_worker.model.one_shot_all_reduce import MAX_BYTES, OneShotAllReduce, OneShotUnavailable
from llava_worker.model.tensor_parallel import TensorParallel

from tests.worker.checkpoints import Prompt, random_prompt, write_checkpoint
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.parallel.reference_rank import FAULT, MODULE, GatheringOneShot
from tests.worker.engine.parallel.two_ranks import RecordingRunner, TwoRanks, load, logits_of

TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}  # the order of summation in fp32 differs

Choose = Callable[[str, str], tuple[TwoRanks, list[GatheringOneShot]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reduced")
    write_checkpoint(folder)
    return folder


@pytest.fixture
def choose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Choose]:
    """Return a function that starts two ranks with these faults, and lets them choose."""
    started: list[TwoRanks] = []

    def choose(first: str, second: str) -> tuple[TwoRanks, list[GatheringOneShot]]:
        monkeypatch.setenv(FAULT, second)
        ranks = TwoRanks(folder, attention="reference", module=MODULE)
        started.append(ranks)
        made: list[GatheringOneShot] = []

        def make(device: torch.device, dtype: torch.dtype, gpus: range) -> OneShotAllReduce:
            assert gpus == range(2)
            made.append(GatheringOneShot(first, device, dtype))
            return made[-1]

        hidden_size = ranks.model.config.text_config.hidden_size
        choose_all_reduce(ranks.group.ranks, torch.float32, hidden_size, make)
        return ranks, made

    yield choose
    for ranks in started:
        ranks.group.close()


@pytest.fixture
def assert_exact(
    folder: Path, make_engine: MakeEngine, make_sequence: MakeSequence
) -> Callable[[TwoRanks], None]:
    """Return a function that compares the logits of two ranks with those of one process."""
    rng = np.random.default_rng(23)
    prompts: list[Prompt] = [random_prompt(rng, num_images=num) for num in (0, 1)]

    def check(ranks: TwoRanks) -> None:
        one, two = (
            logits_of(
                make_engine(over=model, runner=RecordingRunner),
                [make_sequence(prompt, seq_id=str(index)) for index, prompt in enumerate(prompts)],
            )
            for model in (load(folder), ranks.model)
        )
        for name, logits in one.items():
            torch.testing.assert_close(two[name], logits, **TOLERANCE)

    return check


def test_small_tensors_use_the_one_shot_kernel_and_others_do_not(
    choose: Choose,
    assert_exact: Callable[[TwoRanks], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with caplog.at_level("INFO"):
        ranks, [one_shot] = choose("", "")
    limit = len(one_shot.buffer) // ranks.model.config.text_config.hidden_size
    num_trials, reductions = one_shot.num_calls, list[int]()
    reduce = ranks.group.ranks.all_reduce

    def record(x: torch.Tensor) -> torch.Tensor:
        reductions.append(len(x))
        return reduce(x)

    monkeypatch.setattr(ranks.group.ranks, "all_reduce", record)

    assert ranks.group.ranks.one_shot is one_shot
    assert f"all-reduce: one-shot kernel for up to {limit} tokens, gloo for more" in caplog.messages
    assert_exact(ranks)
    assert one_shot.num_calls - num_trials == sum(num <= limit for num in reductions)
    assert min(reductions) <= limit < max(reductions)


@pytest.mark.parametrize("fault", ["unavailable", "connection", "wrong sums", "unwritten"])
@pytest.mark.parametrize("rank", [0, 1])
def test_if_the_kernel_fails_on_one_rank_no_rank_uses_it(
    choose: Choose,
    assert_exact: Callable[[TwoRanks], None],
    caplog: pytest.LogCaptureFixture,
    rank: int,
    fault: str,
) -> None:
    with caplog.at_level("INFO"):
        ranks, _ = choose(*(["", fault] if rank else [fault, ""]))

    assert ranks.group.ranks.one_shot is None
    [message] = [message for message in caplog.messages if message.startswith("all-reduce: ")]
    assert message.startswith("all-reduce: gloo; the one-shot kernel is not used: ")
    assert ("another rank" in message) == (rank == 1)
    assert_exact(ranks)


def test_the_kernel_requires_gpus_that_can_access_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OneShotUnavailable, match="requires a GPU, and the device is cpu"):
        OneShotAllReduce(torch.device("cpu"), torch.bfloat16, range(2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda device, peer: peer != 3)
    with pytest.raises(OneShotUnavailable, match="cuda:2 cannot access the memory of cuda:3"):
        OneShotAllReduce(torch.device("cuda:2"), torch.bfloat16, range(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_torch_accepts_the_arguments_of_the_kernel(dtype: torch.dtype) -> None:
    """On the meta device, torch checks the arguments and computes shapes, but has no data."""
    wire = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    kernel = OneShotAllReduce.__new__(OneShotAllReduce)
    kernel.dtype, kernel.group = wire, "0"
    kernel.buffer = torch.empty(MAX_BYTES // wire.itemsize, dtype=wire, device="meta")
    x = torch.empty(3, 4096, dtype=dtype, device="meta")

    out = kernel(x)

    assert kernel.fits(x) and not kernel.fits(torch.empty(MAX_BYTES, device="meta"))
    assert (out.shape, out.dtype) == (x.shape, dtype)


def test_a_single_rank_does_not_communicate() -> None:
    x = torch.ones(2)
    assert TensorParallel().all_reduce(x) is x
