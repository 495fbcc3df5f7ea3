"""Tests that ranks exit together and that invalid configurations are rejected before any rank is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.tensor_parallel import RankFailed

from tests.machine_speed import scaled
from tests.worker.checkpoints import Prompt, random_prompt, write_checkpoint
from tests.worker.engine.factories import MakeEngine, MakeSequence
from tests.worker.engine.parallel.two_ranks import TwoRanks


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[TwoRanks]:
    write_checkpoint(tmp_path)
    ranks = TwoRanks(tmp_path)
    yield ranks
    ranks.group.close()


@pytest.fixture
def prompt() -> Prompt:
    return random_prompt(np.random.default_rng(23), num_images=0)


def test_the_exit_of_a_rank_is_reported_and_no_step_runs_without_it(
    ranks: TwoRanks, make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt
) -> None:
    engine = make_engine(over=ranks.model)
    engine.add(make_sequence(prompt, ignore_eos=True))
    engine.step()
    (pid,) = ranks.group.pids
    os.kill(pid, signal.SIGKILL)
    assert ranks.lost.wait(scaled(30.0))

    with pytest.raises((OSError, RuntimeError)):  # either the pipe or torch's connection is closed
        for _ in range(3):
            engine.step()


def test_closing_the_ranks_is_not_reported_as_a_loss(ranks: TwoRanks) -> None:
    (pid,) = ranks.group.pids
    assert psutil.pid_exists(pid)
    ranks.group.close()
    assert not psutil.pid_exists(pid)
    assert not ranks.lost.is_set()


def test_a_step_that_runs_out_of_memory_fails_all_ranks(
    ranks: TwoRanks, make_engine: MakeEngine, make_sequence: MakeSequence, prompt: Prompt
) -> None:
    """In a single process, the step would be split in half."""
    engine = make_engine(over=ranks.model)

    def raise_out_of_memory(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    mlp: Any = ranks.model.language_model.layers[1].mlp
    mlp._act = raise_out_of_memory
    engine.add(make_sequence(prompt))

    with pytest.raises(RankFailed, match="A step across 2 ranks ran out of memory"):
        engine.step()


def test_an_engine_with_two_ranks_is_built_by_one_call(tmp_path: Path) -> None:
    """The engine runs in a separate process. When this process exits, the other rank exits too.

    Each rank stores its shard of the weights. The second process uses the stored weights.
    """
    write_checkpoint(tmp_path / "model")
    program = (
        "import sys, psutil\n"
        "from llava_worker.engine import Sequence\n"
        "from pathlib import Path\n"
        "from llava_worker.engine.startup.build_engine import build_engine\n"
        "from llava_worker.engine.startup.engine_config import EngineConfig\n"
        "outputs = []\n"
        "for size in (1, 2):\n"
        "    config = EngineConfig(Path(sys.argv[1]), device='cpu', precision='fp32', num_threads=1,\n"
        "                          tensor_parallel_size=size, kv_cache_bytes=1 << 20,\n"
        "                          weights_cache=Path(sys.argv[2]))\n"
        "    engine, info = build_engine(config)\n"
        "    engine.add(Sequence(seq_id='a', prompt_ids=[1, 7, 5, 9], max_new_tokens=8))\n"
        "    outputs.append([])\n"
        "    while engine.num_sequences:\n"
        "        outputs[-1] += [output.token_id for output in engine.step()]\n"
        "assert outputs[0] == outputs[1], outputs\n"
        "print(outputs[0])\n"
        "print(*(child.pid for child in psutil.Process().children()))\n"
    )
    outputs = set()
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "model"), str(tmp_path / "cache")],
            capture_output=True,
            text=True,
            check=True,
        )
        output, pid = ended.stdout.splitlines()
        outputs.add(output)
        assert not psutil.pid_exists(int(pid))
    assert len(outputs) == 1
    assert (
        len(list((tmp_path / "cache").glob("*.weights"))) == 3
    )  # the whole model and the shards of the ranks


def error_of(folder: Path, *, precision: str = "fp32", num_ranks: int) -> str:
    config = EngineConfig(folder, device="cpu", precision=precision, tensor_parallel_size=num_ranks)
    with pytest.raises(ValueError) as raised:
        build_engine(config)
    return str(raised.value)


def test_an_invalid_number_of_ranks_is_rejected_with_the_valid_ones(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    message = error_of(tmp_path, num_ranks=3)
    assert "3 does not divide num_attention_heads 4, num_key_value_heads 2, intermediate_size 80" in message
    assert "Supported values of tensor_parallel: 1, 2." in message


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_precisions_are_rejected_with_several_ranks(tmp_path: Path, precision: str) -> None:
    write_checkpoint(tmp_path)
    message = error_of(tmp_path, num_ranks=2, precision=precision)
    assert message.startswith(
        f"Precision {precision} does not support tensor parallelism. Use one of fp32, bf16"
    )
