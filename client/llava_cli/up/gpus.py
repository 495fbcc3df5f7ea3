"""The GPUs that ``llava-serve up --gpus`` names, listed by nvidia-smi because torch is not imported here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

__all__ = ["GpusUnavailable", "choose_gpus"]

_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
_TIMEOUT_S = 30.0  # a driver that is not loaded yet is loaded by the question
_NAME = re.compile(r"\d+|(GPU|MIG)-[\w-]+")


class GpusUnavailable(Exception):
    """The message says what was asked for, what there is, and the way out."""


def choose_gpus(text: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The names of "all" (that CUDA may see) or of "0,2", each once. Raises GpusUnavailable."""
    if text != "all":
        return _parse(text, "--gpus")
    if visible := environment.get("CUDA_VISIBLE_DEVICES"):
        return _parse(visible, "CUDA_VISIBLE_DEVICES")
    try:
        done = subprocess.run(
            _NVIDIA_SMI, env=environment, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise GpusUnavailable(
            f"--gpus all: nvidia-smi, which knows them, cannot be asked ({error}): name them, as in "
            "--gpus 0,1, or leave --gpus out to run on what there is"
        ) from error
    gpus = tuple(done.stdout.split())
    if not gpus:
        raise GpusUnavailable("--gpus all: there is none; leave --gpus out to run on the CPU")
    return gpus


def _parse(text: str, where: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong or len(set(names)) < len(names):
        raise GpusUnavailable(
            f"{where} is {text!r}: give all, or numbers and UUIDs as nvidia-smi -L tells them, each once: 0,1"
        )
    return names
