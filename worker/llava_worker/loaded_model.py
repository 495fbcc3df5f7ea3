"""The parts of a model that is ready to be served, and the errors that occur while it is opened."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava_wire.messages.heartbeat import EngineInfo, Heartbeat, ImageSpec, KernelInfo

from llava_worker.engine import EngineInterface
from llava_worker.engine.core.step_timer import StepTimer
from llava_worker.language.prompt_builder import PromptBuilder, PromptError
from llava_worker.language.prompt_formats import ChatTemplateError
from llava_worker.language.tokenizer import Tokenizer, TokenizerError
from llava_worker.model_thread import ModelThread
from llava_worker.settings import Settings
from llava_worker.telemetry.traced_engine import TracedEngine, open_trace

if TYPE_CHECKING:
    from llava_worker.engine.structured_output.grammar_cache import GrammarCache
    from llava_worker.model.loading.unstored_weights import UnstoredWeights

__all__ = [
    "LoadedModel",
    "StartupError",
    "StartupTimes",
    "conversation_errors",
    "make_grammars",
    "make_heartbeat",
    "missing_modules",
    "require_modules",
    "served_name",
    "traced_engine",
]

_MAX_ERROR_LENGTH = 4000  # characters

logger = logging.getLogger(__name__)


class StartupError(Exception):
    """The worker cannot start with these settings. The message says how to fix the problem.

    It is a single line of limited length: names in a checkpoint's files could otherwise forge log lines.
    """

    def __init__(self, message: str) -> None:
        cut = message if len(message) <= _MAX_ERROR_LENGTH else f"{message[:_MAX_ERROR_LENGTH]}..."
        super().__init__(
            "".join(each if each.isprintable() else repr(each)[1:-1] for each in cut.replace("\n", " "))
        )


@dataclass(frozen=True, slots=True)
class StartupTimes:
    """The time until the model was ready, both in total and for each phase."""

    import_s: float = 0.0  # torch and the modules that import it
    weights_s: float = 0.0
    warmup_s: float = 0.0
    total_s: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.total_s:.1f} s (import {self.import_s:.1f} s, weights {self.weights_s:.1f} s, "
            f"warm-up {self.warmup_s:.1f} s)"
        )


@dataclass(frozen=True)
class LoadedModel:
    """Everything that a Worker needs except the queue."""

    engine: EngineInterface
    tokenizer: Tokenizer
    prompts: PromptBuilder
    heartbeat: Heartbeat
    times: StartupTimes = StartupTimes()
    grammars: GrammarCache | None = None  # None if structured output is not supported
    thread: ModelThread | None = None  # the thread that loaded the model, if it will also run the engine
    unstored_weights: UnstoredWeights | None = None  # to be stored in the weights cache


def make_grammars(tokenizer: Tokenizer, *, vocab_size: int, eos_ids: frozenset[int]) -> GrammarCache:
    """Return the cache of compiled grammars for a model."""
    from llava_worker.engine.structured_output.grammar_cache import GrammarCache

    return GrammarCache(
        lambda: [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)],
        eos_ids,
        begins_with_space=tokenizer.strips_leading_space,
    )


def traced_engine(
    engine: EngineInterface, settings: Settings, name: str, timer: StepTimer | None = None
) -> EngineInterface:
    """Wrap the engine in a TracedEngine if ``--trace-steps`` is set. Raises StartupError."""
    path = settings.trace_steps
    if path is None:
        return engine
    try:
        trace = open_trace(path, process=f"llava worker, {name}")
    except OSError as error:
        raise StartupError(
            f"The timeline file {path} could not be written: {error}. Use a different file for each worker, "
            "for example by including {pid} in its name."
        ) from error
    logger.info("writing a timeline of all steps to %s", path)
    return TracedEngine(engine, trace, timer)


@contextmanager
def conversation_errors(settings: Settings) -> Iterator[None]:
    """Convert errors of the chat template and the tokenizer to StartupError."""
    try:
        yield
    except (ChatTemplateError, PromptError, TokenizerError) as error:
        raise StartupError(
            f"Conversation template {settings.conversation!r} cannot be used with this model: {error}"
        ) from error


def make_heartbeat(
    engine: EngineInterface,
    tokenizer: Tokenizer,
    spec: ImageSpec,
    name: str,
    model_digest: str,
    engine_info: EngineInfo,
    *,
    device: str,
    precision: str,
    kernels: KernelInfo | None = None,
    stats: dict[str, float] | None = None,
) -> Heartbeat:
    return Heartbeat(
        worker_id=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        model=name,
        model_digest=model_digest,
        image_spec=spec,
        context_length=engine.context_length,
        capacity=engine.max_sequences,
        max_token_bytes=tokenizer.max_token_bytes or 0,
        device=device,
        precision=precision,
        kernels=kernels,
        engine=engine_info,
        started_at=time.time(),
        stats=stats or {},
    )


def served_name(model: str, folder: Path) -> str:
    if model == "tiny":
        return "tiny-llava"
    return folder.name if Path(model).is_dir() else model


def missing_modules(modules: Iterable[str]) -> str:
    """Return the names of the packages that are not installed, separated by commas."""
    return ", ".join(module for module in modules if importlib.util.find_spec(module) is None)


def require_modules(*modules: str) -> None:
    if missing := missing_modules(modules):
        raise StartupError(
            f"The model requires packages that are not installed: {missing}. "
            "Run pip install 'llava-serve[worker]'."
        )
