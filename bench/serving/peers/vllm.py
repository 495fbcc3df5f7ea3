"""vLLM, bf16 on CPU. Its wheels on PyPI are for CUDA; those for CPUs are on the project's own index.

    pip install vllm --extra-index-url https://wheels.vllm.ai/VERSION/cpu

Where that index cannot be reached there is nothing to measure, and this says so.
"""

from __future__ import annotations

from pathlib import Path

from bench.record import WORK
from bench.serving.peers.environment import cpu_torch, ensure_environment, installed
from bench.serving.target import Target

__all__ = ["targets"]

_NAME = "vllm"
_VERSION = "0.32.0"
_INDEX = f"https://wheels.vllm.ai/{_VERSION}/cpu"
_SERVED = "llava"


def targets(checkpoint: Path) -> list[Target]:
    def prepare() -> None:
        # vllm itself from that index and nowhere else: the same version on PyPI brings gigabytes of CUDA.
        wheel = ["--no-deps", "--retries", "0", "--index-url", _INDEX, f"vllm=={_VERSION}"]
        ensure_environment(_NAME, wheel, [cpu_torch(), f"vllm=={_VERSION}", "--extra-index-url", _INDEX])

    def command(port: int) -> list[str]:
        program = str(WORK / f"venv-{_NAME}" / "bin" / "vllm")
        options = ["--dtype", "bfloat16", "--max-model-len", "4096", "--served-model-name", _SERVED]
        return [program, "serve", str(checkpoint), *options, "--host", "127.0.0.1", "--port", str(port)]

    return [
        Target(
            name="vllm-bf16",
            title="vLLM CPU, bf16",
            bits=16,
            command=command,
            model=_SERVED,
            prepare=prepare,
            packages=lambda: installed(_NAME, ("vllm", "torch")),
        )
    ]
