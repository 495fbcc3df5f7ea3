"""What the driver says of the GPUs, for the log of a worker that a GPU has failed: memory errors and Xids.

NVIDIA's own program tells of uncorrected memory errors; Xids, the driver's numbers of what went wrong, are
in the kernel's log, which containers are seldom allowed to read.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

__all__ = ["faults_in", "tell_health", "xids_in"]

_TIMEOUT_S = 10.0  # a card that has failed may keep the driver waiting
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


def tell_health() -> str:
    """A sentence for the log; it never fails."""
    report, kernel = _output_of("nvidia-smi", "-q"), _output_of("dmesg")
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


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout
