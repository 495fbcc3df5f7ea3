"""The transformers library's own server (``transformers serve``) in bf16.

Its continuous batching does not support models with image input (``transformers/cli/serving/``), so requests
are processed sequentially. It does not support ``ignore_eos``, but models with random weights rarely generate
EOS.
"""

from __future__ import annotations

from bench.record import WORK
from bench.serving.peers.environment import cpu_torch, ensure_environment, installed
from bench.serving.served_model import ServedModel
from bench.serving.target import Target

__all__ = ["targets"]

_NAME = "transformers"
_REQUIREMENTS = ("transformers[serving]>=5.17", "accelerate", "pillow")


def targets(model: ServedModel) -> list[Target]:
    def prepare() -> None:
        ensure_environment(_NAME, (cpu_torch(), *_REQUIREMENTS))

    def command(port: int) -> list[str]:
        program = str(WORK / f"venv-{_NAME}" / "bin" / "transformers")
        options = ["--device", "cpu", "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port)]
        return [program, "serve", str(model.folder), *options]

    return [
        Target(
            name="transformers-bf16",
            title="transformers serve, bf16",
            bits=16,
            command=command,
            model=str(model.folder),
            weights=model.folder,
            prepare=prepare,
            environment={"HF_HUB_OFFLINE": "1"},
            packages=lambda: installed(_NAME, ("transformers", "torch")),
        )
    ]
