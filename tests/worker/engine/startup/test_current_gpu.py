"""Each thread that loads or runs a model selects the model's GPU first.

A stub replaces CUDA's own function.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from llava_worker.engine.parallel.rank_group import RankSetup, join
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.device import choose_device
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.gpu.current_gpu import release_cached_memory, use_device
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.worker.checkpoints import write_checkpoint
from tests.worker.engine.factories import MakeEngine


class Selected(Exception):
    """Raised after a GPU has been selected, because this machine may not have it."""


@pytest.fixture
def selected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The calls that select a GPU: pairs of a thread's ID and a GPU's number. There are three GPUs."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda number: calls.append((threading.get_ident(), number))
    )
    return calls


@pytest.fixture
def selection_fails(monkeypatch: pytest.MonkeyPatch, selected: list[tuple[int, int]]) -> None:
    select = torch.cuda.set_device

    def fail(number: int) -> None:
        select(number)
        raise Selected

    monkeypatch.setattr(torch.cuda, "set_device", fail)


def test_a_gpu_is_selected_by_its_number_and_a_cpu_is_not(selected: list[tuple[int, int]]) -> None:
    for name in ("cpu", "meta", "cuda", "cuda:2"):
        use_device(torch.device(name))
    assert [number for _, number in selected] == [0, 2]


@pytest.mark.usefixtures("selection_fails")
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_thread_that_loads_a_model_selects_its_gpu_first(
    tmp_path: Path, selected: list[tuple[int, int]], num_ranks: int
) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises(Selected):  # before anything else uses the GPU, which would fail differently
        build_engine(EngineConfig(tmp_path, device="cuda:1", tensor_parallel_size=num_ranks))
    assert selected == [(threading.get_ident(), 1)]


@pytest.mark.usefixtures("selection_fails")
def test_each_rank_selects_its_own_gpu(selected: list[tuple[int, int]]) -> None:
    setup = RankSetup(
        index=1,
        size=2,
        port=0,
        device="cuda:2",
        precision="fp16",
        attention="sdpa",
        kv_cache_dtype="auto",
        folder="",
        config_folder="",
        vision_tower=None,
        base=None,
        allow_pickle=False,
        num_threads=None,
        log_level=0,
    )
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(Selected):
        join(setup, store)
    assert selected == [(threading.get_ident(), 2)]


def test_the_thread_that_runs_the_engine_selects_the_models_gpu(
    make_engine: MakeEngine, selected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr(engine._runner.model, "device", torch.device("cuda:1"))

    thread = threading.Thread(target=engine.bind_thread)
    thread.start()
    thread.join()

    assert selected == [(thread.ident, 1)]


def test_memory_is_released_only_on_gpus_that_the_process_uses(
    selected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[int] = []
    current = [0]

    @contextmanager
    def device(index: int) -> Iterator[None]:
        current.append(index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 1 << 20 if index == 1 else 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(current[-1]))

    release_cached_memory()

    assert emptied == [1]


def test_a_gpu_that_does_not_exist_is_rejected(selected: list[tuple[int, int]]) -> None:
    assert choose_device("cuda:2").index == 2
    with pytest.raises(ValueError, match="device is cuda:3, but only 3 GPUs are available, numbered from 0"):
        choose_device("cuda:3")
    with pytest.raises(ValueError, match="only 1 GPUs are available from cuda:2 onward"):
        choose_device("cuda:2", 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_is_rejected_on_a_machine_without_one() -> None:
    with pytest.raises(ValueError, match=r"device is cuda, but no GPU is available.*Choose another device"):
        choose_device("cuda")
