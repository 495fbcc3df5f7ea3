"""Selects the GPUs for ``llava-serve up --gpus``. Uses nvidia-smi, because the CLI does not import torch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Gpu", "GpusUnavailable", "choose_gpus"]

_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
_TIMEOUT_S = 30.0  # long, because nvidia-smi may have to load the driver
_NAME = re.compile(r"\d+|(GPU|MIG)-[\w-]+")


class GpusUnavailable(Exception):
    """The selected GPUs are invalid or unavailable. The message explains how to fix this."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, identified by its index or UUID. ``has_nvidia_smi_index`` is false for an index of CUDA.

    By default, CUDA numbers the fastest GPU first, and nvidia-smi numbers GPUs by their PCI bus.
    """

    name: str
    has_nvidia_smi_index: bool = True

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a process that can access only this GPU."""
        order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if self.has_nvidia_smi_index else {}
        return {"CUDA_VISIBLE_DEVICES": self.name, **order}


def choose_gpus(text: str, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Parse a list of GPUs, such as "0,2". "all" selects all GPUs that are visible to CUDA.

    Raises GpusUnavailable if the list is invalid or the GPUs cannot be determined.
    """
    if text != "all":
        return tuple(map(Gpu, _parse(text, "--gpus")))
    if visible := environment.get("CUDA_VISIBLE_DEVICES"):
        return tuple(Gpu(name, False) for name in _parse(visible, "CUDA_VISIBLE_DEVICES"))
    try:
        done = subprocess.run(
            _NVIDIA_SMI, env=environment, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise GpusUnavailable(
            f"--gpus all requires nvidia-smi, which failed: {error}. List the GPUs, for example --gpus 0,1, "
            "or omit --gpus to use the default device."
        ) from error
    gpus = tuple(map(Gpu, done.stdout.split()))
    if not gpus:
        raise GpusUnavailable("--gpus all found no GPUs. Omit --gpus to run on the CPU.")
    return gpus


def _parse(text: str, where: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong or len(set(names)) < len(names):
        raise GpusUnavailable(
            f"{where} is {text!r}. Use a comma-separated list of distinct GPU indices or UUIDs, "
            "such as 0,1 (see nvidia-smi -L). --gpus also accepts all."
        )
    return names
