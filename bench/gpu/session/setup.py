"""The device, the sizes and the files of a session."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from llava_worker.model.quantization.precision import precisions_on

from bench.gpu.session.results import Results
from bench.shape import LLAVA_1_5_SMALL, MINI, Shape

__all__ = ["Setup"]

_7B = replace(LLAVA_1_5_SMALL, hidden=4096, layers=32, heads=32, intermediate=11008)
# A model with the head size of LLaVA-1.5 that is small enough for comparisons in fp32.
_SMALL = replace(
    LLAVA_1_5_SMALL, hidden=1024, layers=4, heads=8, intermediate=2816, vision_hidden=256, vision_layers=4
)
_GPU_PRECISIONS = ("fp16", "w4a16", "fp8", "w8a8", "int4")


@dataclass(frozen=True)
class Setup:
    """A session on a GPU, or a rehearsal on a CPU, which runs the same code with tiny models."""

    folder: Path  # for the results
    is_rehearsal: bool

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.is_rehearsal else "cuda")

    @property
    def results(self) -> Results:
        return Results(self.folder)

    @property
    def shape(self) -> Shape:
        """The shape of the model for performance: LLaVA-1.5-7B."""
        return MINI if self.is_rehearsal else _7B

    @property
    def small_shape(self) -> Shape:
        """The shape of the model for comparisons in fp32."""
        return MINI if self.is_rehearsal else _SMALL

    @property
    def precision(self) -> str:
        """The precision with unquantized weights whose performance is measured."""
        return "fp32" if self.is_rehearsal else "fp16"

    @property
    def precisions(self) -> tuple[str, ...]:
        """All precisions whose performance is measured, the most important ones first."""
        return ("fp32", "int8") if self.is_rehearsal else _GPU_PRECISIONS

    @property
    def checked_precisions(self) -> tuple[str, ...]:
        """All precisions that the device supports."""
        return precisions_on(self.device)

    @property
    def streams(self) -> tuple[int, ...]:
        """The numbers of concurrent streams, in ascending order."""
        return (1, 2) if self.is_rehearsal else (1, 16, 64, 128)

    @property
    def num_tokens(self) -> int:
        """The number of tokens that each stream generates."""
        return 8 if self.is_rehearsal else 64
