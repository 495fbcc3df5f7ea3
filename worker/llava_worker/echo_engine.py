"""EchoEngine: an engine without a model, for tests, demos and load tests of everything except the model.

The output consists of lowercase words. Each token depends only on the prompt, the image digests, the previous
tokens and, unless sampling is greedy, the seed, temperature and top_p. A stream that is resumed by another
worker is therefore identical to an uninterrupted one. Some letters are split into two tokens, as in real
vocabularies. Text embeddings are computed from the number of times that each token occurs in the prompt, and
image embeddings from the image's digest. The supported sampling parameters are temperature, top_p, seed,
ignore_eos, stop_token_ids and num_logprobs (including prompt log-probabilities). ``step_s`` slows down
generation so that streams can be interrupted. If faults are enabled, a marker in the prompt triggers a fault:

    [[crash at 5]]   the process exits immediately before token 5, as if killed
    [[fail at 5]]    the step raises an exception, as if the device had failed
    [[error at 5]]   only this sequence fails
    [[hang at 5]]    the step never returns
    [[refuse]]       the sequence is rejected
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import threading
import time
from dataclasses import dataclass
from typing import Literal

from llava_wire.messages.event import ErrorCode, JobError

from llava_worker.engine import EngineStats, Sequence, SequenceRejected, StepOutput, TokenLogprobs
from llava_worker.language.tokenizer import ByteTokenizer

__all__ = ["EchoEngine"]

_LETTERS = b"aaabcdeeeefghiiijklmnoooprssttuuvwyz"
_LEAD_BYTE = 0xC3
_CONTINUATION_BYTES = b"\xa0\xa4\xa9\xb6\xbc"  # after 0xC3: a-grave, a-umlaut, e-acute, o-umlaut, u-umlaut
_SPACE = 0x20
_MARKER = re.compile(rb"\[\[(crash|fail|error|hang|refuse)(?: at (\d+))?\]\]")
_CRASH_STATUS = 139  # the exit status that a shell reports after a segmentation fault


@dataclass
class _Running:
    sequence: Sequence
    state: bytes  # digest of everything that the next token depends on
    length: int  # length of the output, in tokens, including the end-of-sequence token
    has_end: bool  # whether the last token is an end-of-sequence token
    fault: str = ""
    fault_at: int = 0


class EchoEngine:
    """An engine without a model that generates one token per step for each running sequence.

    Up to ``max_sequences`` sequences run at a time. Those with the highest priority run first.
    """

    def __init__(
        self,
        *,
        max_sequences: int = 16,
        context_length: int = 4096,
        step_s: float = 0.0,
        has_faults: bool = False,
    ) -> None:
        self.max_sequences = max_sequences
        self.context_length = context_length
        self._step_s = step_s
        self._has_faults = has_faults
        self._sequences: dict[str, _Running] = {}
        self._num_steps = 0
        self._num_generated = 0

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    def bind_thread(self) -> None:
        """Do nothing, because this engine uses no device."""

    def add(self, sequence: Sequence) -> None:
        """Add a sequence. Raises SequenceRejected if the prompt leaves no room for output."""
        num_tokens = len(sequence.prompt_ids)
        if num_tokens >= self.context_length:
            message = (
                f"The prompt has {num_tokens} tokens; the model's context length is {self.context_length}. "
                "Shorten the prompt."
            )
            raise SequenceRejected(JobError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message))
        running = _start(sequence, room=self.context_length - num_tokens)
        if self._has_faults:
            _set_fault(running)
        if running.fault == "refuse":
            message = "The prompt instructed the echo model to reject it (LLAVA_ECHO_FAULTS, for tests only)."
            raise SequenceRejected(JobError(ErrorCode.INVALID_REQUEST, message))
        self._sequences[sequence.seq_id] = running

    def abort(self, seq_id: str) -> None:
        """Drop a sequence. An unknown ID is ignored."""
        self._sequences.pop(seq_id, None)

    def step(self) -> list[StepOutput]:
        """Wait for ``step_s``, then generate one token for each running sequence."""
        if self._step_s:
            time.sleep(self._step_s)
        self._num_steps += 1
        by_priority = sorted(self._sequences.values(), key=lambda running: -running.sequence.priority)
        outputs = [self._advance(running) for running in by_priority[: self.max_sequences]]
        for output in outputs:
            if output.is_final:
                del self._sequences[output.seq_id]
        self._num_generated += sum(output.token_id is not None for output in outputs)
        return outputs

    def idle(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        num_running = min(len(self._sequences), self.max_sequences)
        return EngineStats(
            num_waiting=len(self._sequences) - num_running,
            num_running=num_running,
            num_steps_total=self._num_steps,
            num_generated_tokens_total=self._num_generated,
        )

    def _advance(self, running: _Running) -> StepOutput:
        sequence = running.sequence
        position = len(sequence.output_ids)
        if running.fault and position >= running.fault_at:
            failed = _fail(running)
            if failed is not None:
                return failed
        if sequence.is_embedding:
            return StepOutput(seq_id=sequence.seq_id, finish="stop", vector=_vector(sequence))
        finish: Literal["stop", "length"] = "stop" if running.has_end else "length"
        if sequence.output_ids and sequence.output_ids[-1] in sequence.sampling.stop_token_ids:
            return StepOutput(seq_id=sequence.seq_id, finish="stop")
        prompt_logprobs = _prompt_logprobs(sequence)
        if position >= running.length:  # the output is empty, or was complete before the sequence was resumed
            return StepOutput(seq_id=sequence.seq_id, finish=finish, prompt_logprobs=prompt_logprobs)
        is_last = position + 1 == running.length
        token_id = ByteTokenizer.eos_token_id if is_last and running.has_end else _next_token(running)
        sequence.output_ids.append(token_id)
        running.state = _fold(running.state, token_id)
        if token_id in sequence.sampling.stop_token_ids:
            is_last, finish = True, "stop"
        return StepOutput(
            seq_id=sequence.seq_id,
            token_id=token_id,
            finish=finish if is_last else None,
            logprobs=_logprobs(running, token_id),
            prompt_logprobs=prompt_logprobs,
        )


def _vector(sequence: Sequence) -> bytes:
    """Return a vector of 16 values, normalized to unit length unless the sequence requests otherwise.

    For text, value i is based on the number of token IDs in the prompt that equal i modulo 16. For an image,
    the values are based on a 16-byte hash of the image's digest.
    """
    if sequence.is_image_embedding:
        values = list(hashlib.blake2b(sequence.images[0].digest.encode(), digest_size=16).digest())
    else:
        values = [0] * 16
        for token_id in sequence.prompt_ids:
            values[token_id % 16] += 1
    length = math.hypot(*values) if sequence.is_normalized else 1.0
    return struct.pack("<16f", *(value / length for value in values))


def _start(sequence: Sequence, *, room: int) -> _Running:
    sampling = sequence.sampling
    seed = (
        "greedy" if sampling.temperature == 0 else f"{sampling.seed} {sampling.temperature} {sampling.top_p}"
    )
    images = [(image.start, image.digest) for image in sequence.images]
    state = hashlib.blake2b(repr((sequence.prompt_ids, images, seed)).encode(), digest_size=16).digest()
    limit = min(sequence.max_new_tokens, room)
    natural = 64 + int.from_bytes(state[:2], "big") % 64
    has_end = natural <= limit and not sampling.ignore_eos
    for token_id in sequence.output_ids:
        state = _fold(state, token_id)
    return _Running(sequence, state, length=natural if has_end else limit, has_end=has_end)


def _fold(state: bytes, token_id: int) -> bytes:
    return hashlib.blake2b(state + token_id.to_bytes(4, "big"), digest_size=16).digest()


def _next_token(running: _Running) -> int:
    before = running.sequence.output_ids[-1] if running.sequence.output_ids else _SPACE
    draw = int.from_bytes(running.state[:4], "big")
    if before == _LEAD_BYTE:
        return _CONTINUATION_BYTES[draw % len(_CONTINUATION_BYTES)]
    if before != _SPACE and draw % 6 == 0:
        return _SPACE
    if draw % 17 == 0:
        return _LEAD_BYTE
    return _LETTERS[draw // 17 % len(_LETTERS)]


def _logprobs(running: _Running, token_id: int) -> TokenLogprobs | None:
    """Return arbitrary but deterministic log-probabilities.

    The sampled token is the first of the top tokens.
    """
    num_top = running.sequence.sampling.num_logprobs
    if num_top is None:
        return None
    logprob = -running.state[4] / 256
    top = ((token_id + rank, logprob - rank) for rank in range(num_top))
    return TokenLogprobs(logprob, tuple(top))


def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprobs, ...]:
    """Return log-probabilities that decrease by 1/8 per token.

    The prompt token is the first of the top tokens.
    """
    if not sequence.needs_prompt_logprobs:
        return ()
    num_top = sequence.num_prompt_logprobs or 0
    return tuple(
        TokenLogprobs(-index / 8, tuple((token_id + rank, -index / 8 - rank) for rank in range(num_top)), 1)
        for index, token_id in enumerate(sequence.prompt_ids[1:], start=1)
    )


def _set_fault(running: _Running) -> None:
    prompt = bytes(token_id for token_id in running.sequence.prompt_ids if token_id < 256)
    found = _MARKER.search(prompt)
    if found:
        running.fault = found.group(1).decode()
        running.fault_at = int(found.group(2) or 0)


def _fail(running: _Running) -> StepOutput | None:
    if running.fault == "crash":
        os._exit(_CRASH_STATUS)
    if running.fault == "fail":
        raise RuntimeError("the prompt instructed the echo engine to fail")
    if running.fault == "hang":
        threading.Event().wait()
    if running.fault == "error":
        error = JobError(
            ErrorCode.INTERNAL_ERROR,
            "The prompt instructed the echo model to fail (LLAVA_ECHO_FAULTS, for tests only).",
        )
        return StepOutput(seq_id=running.sequence.seq_id, error=error)
    return None
