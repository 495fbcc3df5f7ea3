"""OpenVINO GenAI with 8-bit or 4-bit weights and continuous batching.

OpenVINO's own server, OVMS, is not on PyPI, so `openvino_server` is used instead. optimum-intel converts the
checkpoint once, which takes several minutes and requires several gigabytes of disk space.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from bench.record import WORK
from bench.serving.conversion import Conversion
from bench.serving.peers.environment import cpu_torch, ensure_environment, installed, run_or_unavailable
from bench.serving.served_model import ServedModel
from bench.serving.target import Target

__all__ = ["targets"]

_NAME = "openvino"
_REQUIREMENTS = ("openvino-genai", "optimum-intel", "pillow")
_SERVER = Path(__file__).with_name("openvino_server.py")
_WEIGHTS = {8: ["int8"], 4: ["int4", "--sym", "--group-size", "128", "--ratio", "1.0"]}


def targets(model: ServedModel) -> list[Target]:
    # Including the scales. The LM head always has 8 bits.
    bits = {8: 8, 4: model.shape.mean_bits(4 + 16 / 128, lm_head=8)}
    return [_target(model, width, bits[width]) for width in _WEIGHTS]


def _target(model: ServedModel, width: int, bits: float) -> Target:
    folder = WORK / f"openvino-{model.folder.name}-int{width}"
    python = WORK / f"venv-{_NAME}" / "bin" / "python"

    def prepare() -> None:
        # The dependency torchvision is built for CUDA and cannot be imported with the CPU build of torch.
        ensure_environment(_NAME, (cpu_torch(), *_REQUIREMENTS), without=["torchvision"])

    return Target(
        name=f"openvino-int{width}",
        title=f"OpenVINO GenAI, int{width}",
        bits=bits,
        command=lambda port: [str(python), str(_SERVER), str(folder), str(port), str(model.kv_gib)],
        weights=folder,
        model="openvino",
        prepare=prepare,
        conversion=Conversion(folder, lambda: _convert(model.folder, folder, _WEIGHTS[width])),
        packages=partial(installed, _NAME, ("openvino", "openvino-genai", "optimum-intel", "nncf")),
    )


def _convert(checkpoint: Path, folder: Path, weights: list[str]) -> None:
    program = WORK / f"venv-{_NAME}" / "bin" / "optimum-cli"
    source = ["--model", str(checkpoint), "--task", "image-text-to-text"]
    run_or_unavailable(
        [str(program), "export", "openvino", *source, "--weight-format", *weights, str(folder)]
    )
    # GenAI reads the image size from this file, which optimum-intel may omit.
    shutil.copy(checkpoint / "preprocessor_config.json", folder)
