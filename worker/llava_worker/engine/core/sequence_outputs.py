"""The next output of a sequence, and the errors that end it, for all engines that run a model."""

from __future__ import annotations

from llava_wire.messages.event import ErrorCode, JobError

from llava_worker.engine.core.model_runner_output import TokenResult
from llava_worker.engine.core.outputs import Finish, StepOutput
from llava_worker.engine.core.sequence import Sequence

__all__ = ["begin_output", "deadline_error", "next_output", "out_of_memory_error"]


def begin_output(sequence: Sequence, eos_ids: frozenset[int], context_length: int) -> StepOutput | None:
    """Set the end tokens of a new sequence. Return its final output if it requires no forward pass."""
    end_ids = frozenset[int]() if sequence.sampling.ignore_eos else eos_ids
    sequence.end_ids = end_ids.union(sequence.sampling.stop_token_ids)
    finish = _finish_of(sequence, context_length)
    if finish is None or sequence.needs_prompt_logprobs:
        return None
    return StepOutput(sequence.seq_id, finish=finish)


def _finish_of(sequence: Sequence, context_length: int) -> Finish | None:
    """Return the finish reason, or None if the output is not complete."""
    output_ids = sequence.output_ids
    if output_ids and output_ids[-1] in sequence.end_ids:
        return "stop"
    if len(output_ids) >= sequence.max_new_tokens or sequence.num_tokens >= context_length:
        return "length"
    return None


def next_output(sequence: Sequence, token: TokenResult, context_length: int) -> StepOutput:
    """Append the token to the sequence's output, unless the sequence requests no output tokens."""
    prompt_logprobs = sequence.prompt_logprobs if sequence.needs_prompt_logprobs else None
    if token.token_id is None or (prompt_logprobs is not None and prompt_logprobs.has_nan):
        return StepOutput(sequence.seq_id, error=_not_finite_error(sequence))
    token_id: int | None = None
    finish: Finish | None
    if sequence.is_embedding:
        finish = "stop"
    elif sequence.max_new_tokens == 0:  # only prompt log-probabilities were requested
        finish = "length"
    else:
        token_id = token.token_id
        sequence.output_ids.append(token_id)
        finish = _finish_of(sequence, context_length)
    return StepOutput(
        sequence.seq_id,
        token_id,
        finish,
        num_cached_tokens=sequence.num_cached or 0,
        logprobs=None if token_id is None else token.logprobs,
        vector=token.vector,
        prompt_logprobs=prompt_logprobs or (),
    )


def deadline_error(sequence: Sequence, now: float) -> JobError | None:
    """Return the error of a sequence whose deadline has passed. ``now`` is on the deadline's clock."""
    if sequence.deadline_s is None or sequence.deadline_s > now:
        return None
    num_tokens = len(sequence.output_ids)
    message = (
        f"The request reached its deadline after {num_tokens} output tokens. Retry later, or request fewer "
        "tokens."
    )
    return JobError(ErrorCode.DEADLINE_EXCEEDED, message)


def _not_finite_error(sequence: Sequence) -> JobError:
    num_tokens = len(sequence.output_ids)
    message = f"The model produced NaN or infinity after {num_tokens} output tokens."
    return JobError(ErrorCode.INTERNAL_ERROR, message)


def out_of_memory_error() -> JobError:
    message = (
        "The worker ran out of memory while processing this request. Retry later, shorten the prompt, or "
        "send fewer images."
    )
    return JobError(ErrorCode.INSUFFICIENT_MEMORY, message)
