"""Log lines that report what a worker selected, and why. ``llava-serve up`` shows them once it is ready.

Other code can rely on the name of the logger and on the part before the first colon.
"""

from __future__ import annotations

import logging

from llava_wire.messages.heartbeat import KernelInfo

__all__ = ["log_device", "log_kernels", "log_precision"]

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


def log_kernels(kernels: KernelInfo) -> None:
    """Log the kernels of a loaded model."""
    name = f"{kernels.source} ({kernels.variant})" if kernels.variant else kernels.source
    fallback = f"because {kernels.fallback_reason}" if kernels.fallback_reason else ""
    _logger.info("kernels: %s, %s", name, fallback or _REASONS.get(kernels.source, "as available"))
