"""The inference engine. It generates tokens for sequences, running one forward pass per step.

    Engine.step = Scheduler.schedule -> ModelRunner.launch -> postprocess

One thread owns the engine. The package does not depend on Redis, asyncio or HTTP, and it imports only the
message types from ``llava_wire``. The names exported here can be imported without torch, so the echo engine
does not need torch. The real engine is built by ``llava_worker.engine.startup.build_engine``.
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
