"""vLLM in bf16 on a CPU. The wheels on PyPI require CUDA. CPU wheels are available from vLLM's own package
index.

    pip install vllm --extra-index-url https://wheels.vllm.ai/VERSION/cpu

If that index cannot be reached, vLLM is recorded as unavailable.
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
        # Install vllm from this index only: the same version on PyPI depends on gigabytes of CUDA libraries.
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
