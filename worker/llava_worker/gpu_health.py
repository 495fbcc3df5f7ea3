"""Diagnostics that a worker logs after a GPU failure: memory errors and Xids (driver error codes).

``nvidia-smi`` reports uncorrected memory errors. Xids are written to the kernel log, which containers usually
cannot read.
"""

from __future__ import annotations

import logging
import re
import subprocess
import time
from collections.abc import Iterator
from threading import Thread

__all__ = ["describe_gpu_health", "log_gpu_health", "parse_faults", "parse_xids"]

_TIMEOUT_S = 5.0  # short, because a failed GPU may block the driver, and requests wait until the worker exits
_MAX_XIDS = 5  # only the most recent Xids are logged
_LINE = re.compile(r"( *)(\S.*?)\s*(?: : (.*))?$")
_XID = re.compile(r"NVRM: (Xid \(PCI:.*)")
# Values that mean "no fault", keyed by section and by the last words of the field name.
_HEALTHY_VALUES = {
    ("Volatile", "Uncorrectable"): ("0", "N/A"),
    ("Volatile", "Uncorrectable Parity"): ("0", "N/A"),
    ("Volatile", "Uncorrectable SEC-DED"): ("0", "N/A"),
    ("Volatile", "Total Uncorrectable"): ("0", "N/A"),
    ("Retired Pages", "Pending Page Blacklist"): ("No", "N/A"),
    ("Remapped Rows", "Pending"): ("No", "N/A"),
    ("Remapped Rows", "Remapping Failure Occurred"): ("No", "N/A"),
    ("", "GPU Recovery Action"): ("None", "N/A"),
}

logger = logging.getLogger(__name__)


def log_gpu_health(device: str) -> None:
    """Log the health of all GPUs if ``device`` is a GPU. Returns within a few seconds."""
    if device.startswith("cuda"):
        logger.critical("GPU health after the failure: %s", describe_gpu_health())


def describe_gpu_health(timeout_s: float = _TIMEOUT_S) -> str:
    """Return a one-line summary for the log within ``timeout_s``. Never raises an exception."""
    report, kernel_log = _run_all(("nvidia-smi", "-q"), ("dmesg",), timeout_s=timeout_s)
    findings = [*(parse_faults(report) if report else []), *(parse_xids(kernel_log) if kernel_log else [])]
    if report and not findings:
        findings = ["nvidia-smi reports no fault"]
    if not report:
        findings.append("nvidia-smi failed or timed out")
    if not kernel_log:
        findings.append("the kernel log is not readable (check dmesg on the host for Xid messages)")
    return "; ".join(findings)


def parse_faults(report: str) -> Iterator[str]:
    """Yield the faults that the output of ``nvidia-smi -q`` lists for each GPU."""
    gpu, sections = "", [(-1, "")]
    for line in report.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        depth, name, value = len(match[1]), match[2], match[3]
        while sections[-1][0] >= depth:
            sections.pop()
        if value is None:
            sections.append((depth, name))
            if depth == 0:
                gpu, sections = name, [(-1, ""), (0, "")]
        elif not _is_healthy(sections[-1][1], name, value.strip()):
            location = " ".join(filter(None, [gpu, sections[-1][1]]))
            yield f"{location}: {name} {value.strip()}"


def parse_xids(kernel_log: str) -> list[str]:
    """Return the most recent Xid messages, as written by the driver."""
    return [match[1].rstrip() for match in _XID.finditer(kernel_log)][-_MAX_XIDS:]


def _is_healthy(section: str, name: str, value: str) -> bool:
    return all(
        value in healthy_values
        for (in_section, end), healthy_values in _HEALTHY_VALUES.items()
        if in_section == section and (name == end or name.endswith(f"AM {end}"))  # SRAM or DRAM
    )


def _run_all(*commands: tuple[str, ...], timeout_s: float) -> list[str | None]:
    """Return the output of each command, or None if it failed or timed out.

    The commands run in daemon threads, because a program that hangs in the driver cannot be killed.
    """
    outputs: list[str | None] = [None] * len(commands)

    def run(index: int) -> None:
        # Use a shorter timeout, so that the program is killed before this process exits.
        outputs[index] = _run(commands[index], 0.9 * timeout_s)

    threads = [Thread(target=run, args=(index,), daemon=True) for index in range(len(commands))]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return outputs


def _run(command: tuple[str, ...], timeout_s: float) -> str | None:
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_s)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return completed.stdout
