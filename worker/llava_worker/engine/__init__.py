"""The engine: sequences in, tokens out, one forward pass a step.

    Engine.step = Scheduler.schedule -> ModelRunner.run -> postprocess

One thread owns everything in here. This package knows neither Redis nor asyncio nor HTTP; what it exports at
the top needs no torch, so that the echo engine can speak the same language without it. The real engine comes
from ``llava_worker.engine.startup.build_engine.load_engine``.
"""

from __future__ import annotations

from llava_worker.engine.core.outputs import EngineStats, StepOutput, TokenLogprobs
from llava_worker.engine.core.sequence import ImageSpan, Sampling, Sequence, SequenceRefused

__all__ = [
    "EngineStats",
    "ImageSpan",
    "Sampling",
    "Sequence",
    "SequenceRefused",
    "StepOutput",
    "TokenLogprobs",
]
