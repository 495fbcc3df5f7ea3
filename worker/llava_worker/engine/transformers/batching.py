"""Tests how the sequences of a model can be computed together, by running it at startup.

transformers does not declare which models support left padding. The test computes two sequences, one of them
with an image, first one after the other and then in turns, alone and as a padded group. All must produce the
same logits, up to rounding. Models that store something about the last prompt in the model object fail.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.transformers import kv_cache
from llava_worker.engine.transformers.checkpoint import reason_of
from llava_worker.engine.transformers.processor import ImageInputs, ModelProcessor
from llava_worker.engine.transformers.runner import SequenceGroup, TransformersRunner
from llava_worker.model.config.untrusted_file import CheckpointError

__all__ = ["Batching", "ModelTest", "run_test"]

logger = logging.getLogger(__name__)

Batching = Literal["padded", "single"]

_TEXT = "Describe the image in detail."
_NUM_STEPS = 3
# Differences of logits, relative to the largest logit, that can be caused by rounding.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@dataclass(frozen=True, slots=True)
class ModelTest:
    """The results of the test. ``bytes_per_token`` is the size of the KV cache."""

    batching: Batching
    vocab_size: int
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class _Prompt:
    token_ids: list[int]
    images: ImageInputs | None


def run_test(runner: TransformersRunner, processor: ModelProcessor) -> ModelTest:
    """Test the model. Raises CheckpointError if it cannot be used at all."""
    text_ids = processor.encode(_TEXT)
    images = processor.blank_inputs()
    prompts = [_Prompt([*images.token_ids, *text_ids], images), _Prompt(text_ids[: len(text_ids) // 2], None)]
    try:
        alone = [_logits(runner, [prompt])[0] for prompt in prompts]
        in_turns = _logits(runner, prompts)
        first = runner.prefill(prompts[0].token_ids, images)
        batching: Batching = "single"
        if first.is_mergeable and _are_close(runner, _logits(runner, prompts, is_grouped=True), alone):
            batching = "padded"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model that does not support this use can raise any type of exception
        raise _unusable(runner, f"a test of the model failed: {reason_of(error)}") from error
    if not _are_close(runner, in_turns, alone):
        raise _unusable(runner, "its output depends on other requests that it computes in turns")
    logger.info("batching: %s", batching)
    num_tokens = len(prompts[0].token_ids)
    return ModelTest(batching, alone[0].shape[-1], max(1, kv_cache.num_bytes(first.cache) // num_tokens))


def _logits(runner: TransformersRunner, prompts: list[_Prompt], *, is_grouped: bool = False) -> list[Tensor]:
    """Compute the prompts, then a few tokens of each. Return the logits of each, [steps, vocab]."""
    groups, logits = [], []
    for index, prompt in enumerate(prompts):
        prefill = runner.prefill(prompt.token_ids, prompt.images)
        sequence = Sequence(seq_id=str(index), prompt_ids=prompt.token_ids, max_new_tokens=_NUM_STEPS)
        sequence.num_computed = len(prompt.token_ids)
        groups.append(SequenceGroup(sequence, prefill))
        logits.append([prefill.logits[-1]])
    if is_grouped:
        groups[0].join(groups.pop())
    for step in range(_NUM_STEPS - 1):
        for group in groups:
            inputs = [sequence.prompt_ids[-1 - step] for sequence in group.sequences]
            rows = runner.decode(group, inputs)
            for sequence, row in zip(group.sequences, rows, strict=True):
                sequence.num_computed += 1
                logits[int(sequence.seq_id)].append(row)
    return [torch.stack(each) for each in logits]


def _are_close(runner: TransformersRunner, left: list[Tensor], right: list[Tensor]) -> bool:
    tolerance = _TOLERANCES.get(runner.model.dtype, max(_TOLERANCES.values()))
    return all(
        bool((a - b).abs().max() <= tolerance * b.abs().max()) for a, b in zip(left, right, strict=True)
    )


def _unusable(runner: TransformersRunner, reason: str) -> CheckpointError:
    model_type = runner.model.config.model_type
    return CheckpointError(
        f"model_type {model_type!r} is not supported by the transformers engine: {reason}."
    )
