"""The kernels that the live workers report, and warnings about workers that use slower ones."""

from __future__ import annotations

from collections.abc import Sequence

from llava_wire.messages.heartbeat import KERNEL_SOURCES, Heartbeat, KernelInfo

__all__ = ["fallback_warnings", "kernel_source", "kernel_sources"]


def kernel_source(kernels: KernelInfo) -> str:
    """Return the source of the kernels, or "unknown" if this release does not recognize it."""
    return kernels.source if kernels.source in KERNEL_SOURCES else "unknown"


def kernel_sources(heartbeats: Sequence[Heartbeat], model: str) -> list[str]:
    """Return the different sources of the kernels of a model's live workers, sorted.

    Workers that do not report their kernels are omitted.
    """
    found = {kernel_source(beat.kernels) for beat in heartbeats if beat.model == model and beat.kernels}
    return sorted(found)


def fallback_warnings(heartbeats: Sequence[Heartbeat], *, has_details: bool) -> list[str]:
    """Return a warning for each model with workers that use a fallback.

    With ``has_details``, warnings contain a worker's reason, which can contain paths.
    """
    warnings = []
    for model in sorted({beat.model for beat in heartbeats}):
        workers = [beat for beat in heartbeats if beat.model == model]
        reasons = [beat.kernels.fallback_reason for beat in workers if beat.kernels]
        reasons = [reason for reason in reasons if reason]
        if reasons:
            warning = (
                f"{len(reasons)} of {len(workers)} workers of the model {model!r} use torch kernels as a "
                "fallback, which are slower."
            )
            remedy = "Run 'llava-serve doctor' or read the worker's log for the reason."
            warnings.append(f"{warning} {f'Reason: {reasons[0]}.' if has_details else remedy}")
    return warnings
