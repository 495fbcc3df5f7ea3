"""GPU health is parsed from driver reports and logged after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llava_worker.gpu_health import describe_gpu_health, parse_faults, parse_xids

from tests.machine_speed import scaled

# A published report for an A100 with a pending row remap (Xid 63), plus an H100 with newer fields.
FAULTY = """
==============NVSMI LOG==============

Driver Version                            : 510.73.08
CUDA Version                              : 11.6

Attached GPUs                             : 2
GPU 00000000:10:1C.0
    Product Name                          : NVIDIA A100-SXM4-80GB
    ECC Mode
        Current                           : Enabled
        Pending                           : Enabled
    ECC Errors
        Volatile
            SRAM Correctable              : 0
            SRAM Uncorrectable            : 0
            DRAM Correctable              : 177
            DRAM Uncorrectable            : 0
        Aggregate
            SRAM Correctable              : 0
            SRAM Uncorrectable            : 0
            DRAM Correctable              : 177
            DRAM Uncorrectable            : 3
    Retired Pages
        Single Bit ECC                    : N/A
        Double Bit ECC                    : N/A
        Pending Page Blacklist            : N/A
    Remapped Rows
        Correctable Error                 : 1
        Uncorrectable Error               : 0
        Pending                           : Yes
        Remapping Failure Occurred        : No
        Bank Remap Availability Histogram
            Max                           : 639 bank(s)
            None                          : 0 bank(s)
    Temperature
        GPU Current Temp                  : 44 C
GPU 00000000:10:1D.0
    Product Name                          : NVIDIA H100 80GB HBM3
    ECC Errors
        Volatile
            SRAM Uncorrectable Parity     : 0
            SRAM Uncorrectable SEC-DED    : 2
            DRAM Uncorrectable            : 0
    Remapped Rows
        Pending                           : No
        Remapping Failure Occurred        : No
    GPU Recovery Action                   : Reset
"""
HEALTHY = FAULTY.replace(": Yes", ": No").replace(": 2\n", ": 0\n").replace(": Reset", ": None")
KERNEL_LOG = """[  12.1] NVRM: loading NVIDIA UNIX x86_64 Kernel Module
[4711.2] NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping
[4712.9] NVRM: Xid (PCI:0000:10:1d): 79, pid=1122, GPU has fallen off the bus.
[4713.0] usb 1-1: new device
"""


def test_faults_are_reported_with_their_gpu() -> None:
    """Faults are uncorrected errors since the last start, pending resets and pending remaps."""
    assert list(parse_faults(FAULTY)) == [
        "GPU 00000000:10:1C.0 Remapped Rows: Pending Yes",
        "GPU 00000000:10:1D.0 Volatile: SRAM Uncorrectable SEC-DED 2",
        "GPU 00000000:10:1D.0: GPU Recovery Action Reset",
    ]
    assert list(parse_faults(HEALTHY)) == []


def test_the_most_recent_xids_are_reported_as_written_by_the_driver() -> None:
    assert parse_xids(KERNEL_LOG) == [
        "Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping",
        "Xid (PCI:0000:10:1d): 79, pid=1122, GPU has fallen off the bus.",
    ]
    assert len(parse_xids(KERNEL_LOG * 9)) == 5
    assert parse_xids("all is well") == []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the beginning of the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def install(folder: Path, name: str, output: str, status: int = 0) -> None:
    (folder / f"{name}.output").write_text(output)
    write_program(folder / name, f'cat "$0.output"\nexit {status}')


def write_program(path: Path, commands: str) -> None:
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)


def test_health_includes_the_driver_report_and_the_kernel_log(programs: Path) -> None:
    install(programs, "nvidia-smi", FAULTY)
    install(programs, "dmesg", KERNEL_LOG)
    health = describe_gpu_health()
    assert "Remapped Rows: Pending Yes" in health and "79, pid=1122" in health
    assert "no fault" not in health and "not readable" not in health


def test_health_of_a_healthy_gpu(programs: Path) -> None:
    install(programs, "nvidia-smi", HEALTHY)
    install(programs, "dmesg", "[  12.1] all is well")
    assert describe_gpu_health() == "nvidia-smi reports no fault"


def test_failing_programs_are_reported_with_a_remedy(programs: Path) -> None:
    install(programs, "nvidia-smi", "No devices were found", status=6)
    install(programs, "dmesg", "", status=1)
    assert describe_gpu_health() == (
        "nvidia-smi failed or timed out; the kernel log is not readable (check dmesg on the host for Xid "
        "messages)"
    )


def test_program_that_hangs_is_abandoned_and_xids_are_still_reported(programs: Path) -> None:
    write_program(programs / "nvidia-smi", "exec tail -f /dev/null")
    install(programs, "dmesg", KERNEL_LOG)
    health = describe_gpu_health(timeout_s=scaled(1.0))
    assert health.startswith("Xid (PCI:0000:10:1c): 63") and health.endswith(
        "; nvidia-smi failed or timed out"
    )


# An engine that hangs at its first token. The argument is its device.
HANGING_ENGINE = """
import logging, sys, threading
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import Sequence
from llava_worker.engine_thread import EngineThread
from llava_worker.language.tokenizer import ByteTokenizer
logging.basicConfig()
never = threading.Event()
thread = EngineThread(EchoEngine(has_faults=True), on_outputs=lambda outputs: None, on_failure=never.set,
                      hang_timeout_s=0.2, device=sys.argv[1])
thread.start()
thread.add(Sequence(seq_id="a", prompt_ids=ByteTokenizer().encode("[[hang at 1]]"), max_new_tokens=9))
never.wait()
"""
# Makes the same call as a worker that has lost a tensor-parallel rank.
LOST_RANK = """
import logging, sys
from llava_worker.engine_thread import end_process
logging.basicConfig()
end_process(sys.argv[1])
"""


@pytest.mark.parametrize("program", [HANGING_ENGINE, LOST_RANK], ids=["hang", "lost rank"])
def test_worker_logs_the_gpu_health_before_it_exits_after_a_failure(programs: Path, program: str) -> None:
    install(programs, "nvidia-smi", FAULTY)
    install(programs, "dmesg", KERNEL_LOG)
    on_gpu, on_cpu = (
        subprocess.run(
            [sys.executable, "-c", program, device],
            capture_output=True,
            text=True,
            check=False,
            timeout=scaled(60),
        )
        for device in ("cuda:0", "cpu")
    )
    assert on_gpu.returncode == on_cpu.returncode == 70
    assert "Remapped Rows: Pending Yes" in on_gpu.stderr and "79, pid=1122" in on_gpu.stderr
    assert "Xid" not in on_cpu.stderr
