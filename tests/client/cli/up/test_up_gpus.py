"""``up --gpus``: a worker for each GPU, and a sentence where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from llava_cli.up.gpus import GpusUnavailable, choose_gpus
from llava_cli.up.plan import LaunchPlan

from tests.client.cli.command_line import start
from tests.machine_speed import scaled


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Path:
    """A program of that name on a path of its own, where a test writes what it says."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncat "$0.says"\n')
    program.chmod(0o755)
    return program


def environment(program: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", **more}


def test_all_are_those_that_the_driver_knows(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(f"{nvidia_smi}.says").write_text("0\n1\n2\n")
    monkeypatch.setenv("PATH", environment(nvidia_smi)["PATH"])
    assert choose_gpus("all", environment(nvidia_smi)) == ("0", "1", "2")


def test_all_are_no_more_than_cuda_may_see(nvidia_smi: Path) -> None:
    Path(f"{nvidia_smi}.says").write_text("0\n1\n2\n")
    assert choose_gpus("all", environment(nvidia_smi, CUDA_VISIBLE_DEVICES="2,0")) == ("2", "0")


def test_some_are_named_by_number_or_uuid() -> None:
    assert choose_gpus("0, 2", {}) == ("0", "2")
    assert choose_gpus("GPU-8f1c-22,MIG-77aa", {}) == ("GPU-8f1c-22", "MIG-77aa")


@pytest.mark.parametrize("text", ["", "0,,1", "one", "0,0", "-1", "0;1"])
def test_what_names_no_gpus_is_refused_with_what_would(text: str) -> None:
    with pytest.raises(GpusUnavailable, match=r"--gpus is '.*': give all, or numbers and UUIDs"):
        choose_gpus(text, {})


def test_a_machine_without_any_says_so(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(f"{nvidia_smi}.says").write_text("")
    monkeypatch.setenv("PATH", environment(nvidia_smi)["PATH"])
    with pytest.raises(GpusUnavailable, match="there is none; leave --gpus out"):
        choose_gpus("all", environment(nvidia_smi))
    nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(GpusUnavailable, match=r"cannot be asked \(.*status 9.*name them, as in --gpus 0,1"):
        choose_gpus("all", environment(nvidia_smi))


def test_each_worker_sees_one_gpu_and_only_that() -> None:
    plan = LaunchPlan(
        model="tiny",
        served_model_name=None,
        num_workers=2,
        precision="auto",
        device="cuda",
        host="127.0.0.1",
        port=8000,
        gpus=("0", "3"),
    )

    workers = plan.workers("redis://queue")

    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["0", "3"]
    assert [worker.name for worker in workers] == ["worker-1", "worker-2"]
    for worker in workers:
        assert worker.command[worker.command.index("--device") + 1] == "cuda"


def test_gpus_and_a_number_of_workers_are_not_both_taken() -> None:
    process = start("up", "--gpus", "0,1", "--workers", "3", "--port", "0")
    _, stderr = process.communicate(timeout=scaled(60))
    assert process.returncode == 2
    assert "makes a worker for each GPU: leave out --workers and --device" in " ".join(stderr.split())
