"""Types of the engine fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from llava_worker.engine import Sequence
from llava_worker.engine.engine import Engine

MakeEngine: TypeAlias = Callable[..., Engine]
MakeSequence: TypeAlias = Callable[..., Sequence]
# (engine, sequences) -> output token IDs, keyed by sequence ID
Run: TypeAlias = Callable[..., dict[str, list[int]]]
