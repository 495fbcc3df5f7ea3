"""The GPUs and versions of torch that precisions require."""

from __future__ import annotations

import torch
from torch.torch_version import TorchVersion

from llava_worker.model.kernels.triton_launch import MIN_CAPABILITY
from llava_worker.model.kernels.w8a8 import W8A8_FORMATS, Capability

__all__ = ["require_capability", "required_gpu", "unsupported_precisions"]

# On Ada GPUs, torch versions before 2.12 clear the workspace for FP8 products outside of the current stream
# (pytorch issue 177651). In a CUDA graph, or while other streams are active, a product may therefore hang.
_ADA, _ADA_MIN_TORCH = (8, 9), "2.12"
# The minimum compute capability and the GPU generations that introduced it. Other precisions run on all GPUs.
_REQUIRED: dict[str, tuple[Capability, str]] = {
    **{name: (fmt.capability, fmt.gpus) for name, fmt in W8A8_FORMATS.items()},
    "w4a16": (MIN_CAPABILITY, "Ampere"),
}


def unsupported_precisions(capability: Capability) -> set[str]:
    """Return the precisions that GPUs with this compute capability do not support."""
    return {name for name, (required, _) in _REQUIRED.items() if capability < required}


def required_gpu(precision: str) -> str | None:
    """Describe the GPUs that support the precision, or return None if all of them do."""
    if precision not in _REQUIRED:
        return None
    minimum, generations = _REQUIRED[precision]
    return f"a GPU with compute capability {_dotted(minimum)} or higher ({generations})"


def require_capability(
    precision: str, capability: Capability, gpu: str, *, torch_version: str = torch.__version__
) -> None:
    """Raise ValueError if the precision requires a different GPU or a later version of torch."""
    unsupported = unsupported_precisions(capability)
    if precision not in unsupported:
        if precision == "fp8" and capability == _ADA and TorchVersion(torch_version) < _ADA_MIN_TORCH:
            raise ValueError(
                f"Precision fp8 on {gpu} requires torch {_ADA_MIN_TORCH} or later; FP8 products in version "
                f"{torch_version} may hang. Upgrade torch, or use w8a8 or fp16."
            )
        return
    others = [name for name in (*W8A8_FORMATS, "int8", "w4a16") if name not in unsupported]
    raise ValueError(
        f"Precision {precision} requires {required_gpu(precision)}; {gpu} has {_dotted(capability)}. "
        f"Use {', '.join(others)} or fp16."
    )


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
