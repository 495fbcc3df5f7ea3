"""The maximum size of a job's log, which is reserved in Redis before the job is accepted."""

from __future__ import annotations

from llava_wire.messages.job import Job

__all__ = ["max_log_bytes"]

_EVENT_BYTES = 48  # an event with one token and its text, if each event contains only one token
_SCORE_BYTES = 32  # a TokenScore with a token of average length
_LOGPROB_BYTES = 8  # a TokenLogprob without its scores
_FINAL_BYTES = 1024
_VECTOR_BYTES = 65536  # an embedding with up to 16,384 dimensions


def max_log_bytes(job: Job) -> int:
    """Return an upper bound on the size of the job's events in bytes.

    The bound assumes that tokens have an average length, because the longest token of a vocabulary can have
    more than a hundred bytes. It is 0 if the job's ``context_length`` is unknown.
    """
    context = job.context_length
    if not context:
        return 0
    if job.task == "embed":
        return _FINAL_BYTES + _VECTOR_BYTES
    if job.task != "answer":
        return _FINAL_BYTES + context * _EVENT_BYTES
    max_tokens = job.sampling.max_tokens
    num_tokens = context if max_tokens is None else min(max_tokens, context)
    size = _FINAL_BYTES + num_tokens * (_EVENT_BYTES + _scores_bytes(job.sampling.num_logprobs))
    if job.has_prompt_event:
        size += context * _scores_bytes(job.num_prompt_logprobs or 0)
    return size


def _scores_bytes(num_top: int | None) -> int:
    """Return the size of one TokenLogprob with ``num_top`` alternatives, or 0 if it is None."""
    return 0 if num_top is None else _LOGPROB_BYTES + _SCORE_BYTES * (1 + num_top)
