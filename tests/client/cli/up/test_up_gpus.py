"""``up --gpus``: one worker per GPU, and errors for invalid or missing GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from llava_cli.up.gpus import Gpu, GpusUnavailable, choose_gpus
from llava_cli.up.plan import LaunchPlan

from tests.client.cli.command_line import start
from tests.machine_speed import scaled


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Path:
    """A fake nvidia-smi that prints the contents of ``nvidia-smi.output`` in its folder."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncat "$0.output"\n')
    program.chmod(0o755)
    return program


def environment(program: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", **more}


def test_all_selects_the_gpus_listed_by_the_driver(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(f"{nvidia_smi}.output").write_text("0\n1\n2\n")
    monkeypatch.setenv("PATH", environment(nvidia_smi)["PATH"])
    assert choose_gpus("all", environment(nvidia_smi)) == (Gpu("0"), Gpu("1"), Gpu("2"))


def test_all_is_limited_to_the_visible_cuda_devices(nvidia_smi: Path) -> None:
    Path(f"{nvidia_smi}.output").write_text("0\n1\n2\n")
    gpus = choose_gpus("all", environment(nvidia_smi, CUDA_VISIBLE_DEVICES="2,0"))
    # These are the indices of CUDA, whose order the caller may have set.
    assert [gpu.environment for gpu in gpus] == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "0"}]


def test_gpus_can_be_selected_by_number_or_uuid() -> None:
    assert choose_gpus("0, 2", {}) == (Gpu("0"), Gpu("2"))
    assert choose_gpus("GPU-8f1c-22,MIG-77aa", {}) == (Gpu("GPU-8f1c-22"), Gpu("MIG-77aa"))


@pytest.mark.parametrize("text", ["", "0,,1", "one", "0,0", "-1", "0;1"])
def test_an_invalid_gpu_list_is_rejected_with_the_expected_format(text: str) -> None:
    with pytest.raises(GpusUnavailable, match=r"--gpus is '.*'\. Use a comma-separated list of distinct GPU"):
        choose_gpus(text, {})


def test_all_without_a_gpu_is_an_error(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(f"{nvidia_smi}.output").write_text("")
    monkeypatch.setenv("PATH", environment(nvidia_smi)["PATH"])
    with pytest.raises(GpusUnavailable, match="found no GPUs. Omit --gpus"):
        choose_gpus("all", environment(nvidia_smi))
    nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(
        GpusUnavailable, match=r"which failed: .*status 9.*List the GPUs, for example --gpus 0,1"
    ):
        choose_gpus("all", environment(nvidia_smi))


def test_each_worker_sees_only_its_own_gpu_numbered_as_in_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    plan = LaunchPlan(
        model="tiny",
        served_model_name=None,
        num_workers=2,
        precision="auto",
        device="cuda",
        host="127.0.0.1",
        port=8000,
        gpus=choose_gpus("0,3", {}),
    )

    workers = plan.workers("redis://queue")

    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["0", "3"]
    assert [worker.environment["CUDA_DEVICE_ORDER"] for worker in workers] == ["PCI_BUS_ID"] * 2
    assert [worker.name for worker in workers] == ["worker-1", "worker-2"]
    for worker in workers:
        assert worker.command[worker.command.index("--device") + 1] == "cuda"


def test_gpus_and_workers_cannot_be_combined() -> None:
    process = start("up", "--gpus", "0,1", "--workers", "3", "--port", "0")
    _, stderr = process.communicate(timeout=scaled(60))
    assert process.returncode == 2
    assert "runs one worker per GPU. Omit --gpus, or omit both --workers and --device" in " ".join(
        stderr.split()
    )
