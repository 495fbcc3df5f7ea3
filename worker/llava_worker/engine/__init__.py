"""The inference engine: sequences in, tokens out, one forward pass per step.

    Engine.step = Scheduler.schedule -> ModelRunner.launch -> postprocess

One thread owns it. The package knows neither Redis nor asyncio nor HTTP; of the wire it uses only the
messages. What it exports here needs no torch, so that the echo engine works without it; the real engine comes
from ``llava_worker.engine.startup.build_engine``.
"""

from __future__ import annotations

from llava_worker.engine.core.outputs import EngineStats, StepOutput, TokenLogprobs
from llava_worker.engine.core.sequence import ImageSpan, Sequence, SequenceRejected
from llava_worker.engine.interface import EngineInterface

__all__ = [
    "EngineInterface",
    "EngineStats",
    "ImageSpan",
    "Sequence",
    "SequenceRejected",
    "StepOutput",
    "TokenLogprobs",
]
