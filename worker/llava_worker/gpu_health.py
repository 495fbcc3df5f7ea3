"""What the driver says of the GPUs, for the log of a worker that a GPU has failed: memory errors and Xids.

NVIDIA's own program tells of uncorrected memory errors; Xids, the driver's numbers of what went wrong, are
in the kernel's log, which containers are seldom allowed to read.
"""

from __future__ import annotations

import logging
import re
import subprocess
import time
from collections.abc import Iterator
from threading import Thread

__all__ = ["faults_in", "log_health", "tell_health", "xids_in"]

_TIMEOUT_S = 5.0  # a card that failed may keep the driver waiting, and requests wait for this process's end
_MOST_XIDS = 5  # the latest
_LINE = re.compile(r"( *)(\S.*?)\s*(?: : (.*))?$")
_XID = re.compile(r"NVRM: (Xid \(PCI:.*)")
# What is well, by the section it stands in and the end of its name.
_WELL = {
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


def log_health(device: str) -> None:
    """Of a GPU that has failed; other devices have none. Takes as long as `tell_health` at most."""
    if device.startswith("cuda"):
        logger.critical("after this failure: %s", tell_health())


def tell_health(timeout_s: float = _TIMEOUT_S) -> str:
    """A sentence for the log, within the time; it never fails."""
    report, kernel = _outputs(("nvidia-smi", "-q"), ("dmesg",), timeout_s=timeout_s)
    told = [*(faults_in(report) if report else []), *(xids_in(kernel) if kernel else [])]
    unknown = [
        *([] if report else ["nvidia-smi gives no answer"]),
        *([] if kernel else ["the kernel's log cannot be read here: look for Xid in dmesg on the host"]),
    ]
    if report and not told:
        told = ["nvidia-smi tells of no fault"]
    return "; ".join([*told, *unknown])


def faults_in(report: str) -> Iterator[str]:
    """Of each GPU in what ``nvidia-smi -q`` says."""
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
        elif not _is_well(sections[-1][1], name, value.strip()):
            place = " ".join(filter(None, [gpu, sections[-1][1]]))
            yield f"{place}: {name} {value.strip()}"


def xids_in(kernel_log: str) -> list[str]:
    """The latest, as the driver wrote them."""
    return [match[1].rstrip() for match in _XID.finditer(kernel_log)][-_MOST_XIDS:]


def _is_well(section: str, name: str, value: str) -> bool:
    return all(
        value in well
        for (where, what), well in _WELL.items()
        if where == section and (name == what or name.endswith(f"AM {what}"))  # SRAM and DRAM have one each
    )


def _outputs(*commands: tuple[str, ...], timeout_s: float) -> list[str | None]:
    """What each says, None without an answer in time.

    Side by side, in threads that can be left: a program that hangs inside the driver survives its kill.
    """
    told: list[str | None] = [None] * len(commands)

    def ask(place: int) -> None:
        told[place] = _output_of(commands[place], 0.9 * timeout_s)  # so that it is killed before we are gone

    threads = [Thread(target=ask, args=(place,), daemon=True) for place in range(len(commands))]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return told


def _output_of(command: tuple[str, ...], timeout_s: float) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_s)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout
