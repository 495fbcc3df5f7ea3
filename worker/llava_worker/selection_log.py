"""Log lines that report what a worker selected, and why. ``llava-serve up`` shows them.

Other code can rely on the name of the logger and on the part before the first colon.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from llava_wire.messages.heartbeat import KernelInfo

__all__ = ["log_device", "log_kernels", "log_precision", "log_private_weights"]

_logger = logging.getLogger("llava_worker.selected")
_REASONS = {
    "shipped": "from the wheel",
    "compiled": "compiled on this machine",
    "triton": "because the device is a GPU",
    "torch": "because there are no other kernels for this precision and device",
}


def log_device(name: str, reason: str) -> None:
    """Log the device that "auto" selected."""
    _logger.info("device: %s, because %s", name, reason)


def log_precision(name: str, reason: str) -> None:
    """Log the precision that "auto" selected."""
    _logger.info("precision: %s, because %s", name, reason)


def log_private_weights(folder: Path, reason: object) -> None:
    """Log that the weights are not stored in the weights cache ``folder``."""
    _logger.warning(
        "weights: not stored in %s (LLAVA_WEIGHTS_CACHE), so the next start takes longer, because %s",
        folder,
        reason,
    )


def log_kernels(kernels: KernelInfo) -> None:
    """Log the kernels of a loaded model."""
    name = f"{kernels.source} ({kernels.variant})" if kernels.variant else kernels.source
    fallback = f"because {kernels.fallback_reason}" if kernels.fallback_reason else ""
    _logger.info("kernels: %s, %s", name, fallback or _REASONS.get(kernels.source, "as available"))
