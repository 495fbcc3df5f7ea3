"""Builds a transformers engine: checks the checkpoint, loads the model and divides the memory."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from importlib import metadata

import torch

from llava_worker.engine.startup.device import choose_device
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.memory_budget import MemoryBudget
from llava_worker.engine.transformers.batching import Batching, ModelTest, run_test
from llava_worker.engine.transformers.checkpoint import TransformersCheckpoint, read_checkpoint
from llava_worker.engine.transformers.checkpoint_check import CheckpointCheck
from llava_worker.engine.transformers.engine import TransformersEngine
from llava_worker.engine.transformers.load_model import load_model
from llava_worker.engine.transformers.processor import ModelProcessor
from llava_worker.engine.transformers.runner import TransformersRunner
from llava_worker.model.config.untrusted_file import CheckpointError
from llava_worker.model.gpu.current_gpu import use_device
from llava_worker.model.memory_estimate import WORKING_BYTES, InsufficientMemory

__all__ = ["MIN_VERSION", "TransformersModelInfo", "build_transformers_engine", "is_supported_version"]

# In older versions, the processors of many models do not report the tokens of an image.
MIN_VERSION = (5, 23)

# The KV cache may use this fraction of the free memory. The rest is for activations and for the copies that
# are made when a sequence joins or leaves a group.
_CACHE_SHARE = 0.5
_MAX_CPU_CACHE_BYTES = 4 << 30
_MIN_CONTEXT = 64
_PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "int4")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransformersModelInfo:
    """The properties of a loaded model that are needed to build prompts."""

    processor: ModelProcessor
    model_type: str
    image_token_id: int
    vocab_size: int
    eos_ids: frozenset[int]
    precision: str
    device: str
    batching: Batching
    weights_digest: str
    weights_s: float
    warmup_s: float


def build_transformers_engine(
    config: EngineConfig, check: CheckpointCheck
) -> tuple[TransformersEngine, TransformersModelInfo]:
    """Check and load the checkpoint, and build an engine. Select the model's GPU in the calling thread.

    Raises CheckpointError if the checkpoint is not supported, ValueError if a setting is invalid, and
    InsufficientMemory (a ValueError) if the model does not fit in memory.
    """
    if not is_supported_version(version := metadata.version("transformers")):
        minimum = ".".join(map(str, MIN_VERSION))
        raise ValueError(
            f"The transformers engine requires transformers {minimum} or newer; version {version} is "
            f"installed. Run pip install 'transformers>={minimum}'."
        )
    _check_settings(config)
    _configure_transformers()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    use_device(device)
    memory = MemoryBudget.measure(device, num_ranks=1, gpu_utilization=config.gpu_memory_utilization)
    began = time.monotonic()
    check.check(config.checkpoint)
    checkpoint = read_checkpoint(config.checkpoint)
    processor = ModelProcessor(config.checkpoint, checkpoint.config)
    model, precision = load_model(checkpoint, config.precision, device)
    loaded_at = time.monotonic()
    runner = TransformersRunner(model)
    test = run_test(runner, processor)
    context_length, max_cached_tokens = _cache_size(config, checkpoint, test, memory)
    image_token_id = _image_token_id(checkpoint, processor)
    eos_ids = checkpoint.eos_ids()
    engine = TransformersEngine(
        runner,
        processor,
        image_token_id=image_token_id,
        vocab_size=test.vocab_size,
        eos_ids=eos_ids,
        context_length=context_length,
        max_num_sequences=config.max_num_sequences,
        max_cached_tokens=max_cached_tokens,
        is_grouped=test.batching == "padded",
    )
    return engine, TransformersModelInfo(
        processor=processor,
        model_type=checkpoint.config.model_type,
        image_token_id=image_token_id,
        vocab_size=test.vocab_size,
        eos_ids=eos_ids,
        precision=precision,
        device=str(device),
        batching=test.batching,
        weights_digest=checkpoint.weights_digest,
        weights_s=loaded_at - began,
        warmup_s=time.monotonic() - loaded_at,
    )


def is_supported_version(version: str) -> bool:
    """Return whether the engine works with this version of transformers."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= MIN_VERSION


def _check_settings(config: EngineConfig) -> None:
    """Raise ValueError if a setting requires the native engine."""
    problems = {
        "tensor_parallel": config.tensor_parallel_size > 1,
        "kv_cache_dtype int8": config.kv_cache_dtype == "int8",
        "base_model": config.base is not None,
        "vision_tower": config.vision_tower is not None,
        "allow_pickle": config.allow_pickle,
        f"precision {config.precision}": config.precision not in _PRECISIONS,
    }
    if unsupported := [name for name, is_set in problems.items() if is_set]:
        names = ", ".join(unsupported)
        raise ValueError(
            f"The transformers engine does not support {names}. Remove the setting, or use a model that the "
            "native engine supports."
        )


def _configure_transformers() -> None:
    """Disable progress bars and warnings. All problems of a checkpoint are reported as errors."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _image_token_id(checkpoint: TransformersCheckpoint, processor: ModelProcessor) -> int:
    names = ("image_token_id", "image_token_index")
    for name in names:
        token_id = getattr(checkpoint.config, name, None)
        if isinstance(token_id, int) and token_id in processor.blank_inputs().token_ids:
            return token_id
    model_type = checkpoint.config.model_type
    raise CheckpointError(
        f"model_type {model_type!r} is not supported by the transformers engine: neither "
        f"{' nor '.join(names)} in config.json is a token that the processor inserts for an image."
    )


def _cache_size(
    config: EngineConfig, checkpoint: TransformersCheckpoint, test: ModelTest, memory: MemoryBudget
) -> tuple[int, int]:
    """Return the context length and the maximum number of cached tokens. Raises InsufficientMemory."""
    longest = checkpoint.context_length
    limit = config.kv_cache_bytes
    if limit is None:
        left = memory.left_bytes()
        limit = _MAX_CPU_CACHE_BYTES if left is None else int(_CACHE_SHARE * max(0, left - WORKING_BYTES))
        if memory.device.type != "cuda":
            limit = min(limit, max(_MAX_CPU_CACHE_BYTES, longest * test.bytes_per_token))
    max_tokens = min(limit // test.bytes_per_token, longest * config.max_num_sequences)
    if max_tokens < min(longest, _MIN_CONTEXT):
        raise InsufficientMemory(
            f"The KV cache is limited to {limit} bytes, enough for {max_tokens} tokens. It needs "
            f"{test.bytes_per_token} bytes per token. Make more memory available, or {memory.advice}."
        )
    if max_tokens < longest:
        logger.warning(
            "the KV cache holds only %d tokens; the context length is reduced from %d tokens accordingly",
            max_tokens,
            longest,
        )
    return min(longest, max_tokens), max_tokens
