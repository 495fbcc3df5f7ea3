"""What the driver says of a GPU that failed comes into the log, out of texts as it writes them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llava_worker.gpu_health import describe_gpu_health, parse_faults, parse_xids

from tests.machine_speed import scaled

# An A100 with a row that waits to be remapped, as published with its Xid 63; and what newer drivers add.
PENDING = """
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
WELL = PENDING.replace(": Yes", ": No").replace(": 2\n", ": 0\n").replace(": Reset", ": None")
KERNEL = """[  12.1] NVRM: loading NVIDIA UNIX x86_64 Kernel Module
[4711.2] NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping
[4712.9] NVRM: Xid (PCI:0000:10:1d): 79, pid=1122, GPU has fallen off the bus.
[4713.0] usb 1-1: new device
"""


def test_uncorrected_errors_and_what_waits_for_a_reset_are_told_of_their_gpu() -> None:
    assert list(parse_faults(PENDING)) == [
        "GPU 00000000:10:1C.0 Remapped Rows: Pending Yes",
        "GPU 00000000:10:1D.0 Volatile: SRAM Uncorrectable SEC-DED 2",
        "GPU 00000000:10:1D.0: GPU Recovery Action Reset",
    ]


def test_corrected_errors_and_those_before_the_last_start_are_none() -> None:
    assert list(parse_faults(WELL)) == []


def test_xids_are_told_as_the_driver_wrote_them_the_latest_only() -> None:
    assert parse_xids(KERNEL) == [
        "Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping",
        "Xid (PCI:0000:10:1d): 79, pid=1122, GPU has fallen off the bus.",
    ]
    assert len(parse_xids(KERNEL * 9)) == 5
    assert parse_xids("all is well") == []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs are found first."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def install(folder: Path, name: str, says: str, status: int = 0) -> None:
    (folder / f"{name}.says").write_text(says)
    program = folder / name
    program.write_text(f'#!/bin/sh\ncat "$0.says"\nexit {status}\n')
    program.chmod(0o755)


def test_both_are_asked(programs: Path) -> None:
    install(programs, "nvidia-smi", PENDING)
    install(programs, "dmesg", KERNEL)
    told = describe_gpu_health()
    assert "Remapped Rows: Pending Yes" in told and "79, pid=1122" in told
    assert "no fault" not in told and "cannot" not in told


def test_a_healthy_card_is_told_as_such(programs: Path) -> None:
    install(programs, "nvidia-smi", WELL)
    install(programs, "dmesg", "[  12.1] all is well")
    assert describe_gpu_health() == "nvidia-smi tells of no fault"


def test_what_cannot_be_asked_is_told_with_where_to_look(programs: Path) -> None:
    install(programs, "nvidia-smi", "No devices were found", status=6)
    install(programs, "dmesg", "", status=1)
    assert describe_gpu_health() == (
        "nvidia-smi gives no answer; the kernel's log cannot be read here: look for Xid in dmesg on the host"
    )


def hang(folder: Path, name: str) -> None:
    program = folder / name
    program.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    program.chmod(0o755)


def test_a_driver_that_never_answers_is_not_waited_for_and_hides_no_xid(programs: Path) -> None:
    hang(programs, "nvidia-smi")
    install(programs, "dmesg", KERNEL)
    began = time.monotonic()
    told = describe_gpu_health(timeout_s=1.0)
    assert time.monotonic() - began < 5
    assert told.startswith("Xid (PCI:0000:10:1c): 63") and told.endswith("; nvidia-smi gives no answer")


# An engine that hangs at its first token, on what calls itself the device that is given.
HANGING = """
import logging, sys, threading
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import Sequence
from llava_worker.engine_thread import EngineThread
from llava_worker.language.tokenizer import ByteTokenizer
logging.basicConfig()
never = threading.Event()
thread = EngineThread(EchoEngine(has_faults=True), on_news=lambda news: None, on_failure=never.set,
                      hang_timeout_s=0.2, device=sys.argv[1])
thread.start()
thread.add(Sequence(seq_id="a", prompt_ids=ByteTokenizer().encode("[[hang at 1]]"), max_new_tokens=9))
never.wait()
"""
# A rank that is lost: what the worker does then.
LOST = """
import logging, sys
from llava_worker.engine_thread import end_process
logging.basicConfig()
end_process(sys.argv[1])
"""


@pytest.mark.parametrize("program", [HANGING, LOST], ids=["hang", "lost rank"])
def test_a_worker_that_ends_by_itself_logs_its_gpus_health_first(programs: Path, program: str) -> None:
    install(programs, "nvidia-smi", PENDING)
    install(programs, "dmesg", KERNEL)
    of_gpu, of_cpu = (
        subprocess.run(
            [sys.executable, "-c", program, device],
            capture_output=True,
            text=True,
            check=False,
            timeout=scaled(60),
        )
        for device in ("cuda:0", "cpu")
    )
    assert of_gpu.returncode == of_cpu.returncode == 70
    assert "Remapped Rows: Pending Yes" in of_gpu.stderr and "79, pid=1122" in of_gpu.stderr
    assert "Xid" not in of_cpu.stderr
