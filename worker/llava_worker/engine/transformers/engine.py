"""The transformers engine: queueing, preemption and sampling for models that transformers runs.

    step = decode       compute the next token of every running sequence, one forward pass per group
           start        compute the prompt of at most one waiting sequence
           sample       sample a token for each sequence without uncomputed tokens

If the model supports left padding, all running sequences are one group. Otherwise, each of them is a group of
its own, so that all streams still progress in each step. Images are processed in a thread, so running
sequences do not wait for them.

A sequence that resumes an output, or that was preempted, first computes its prompt and then one output token
per step without sampling. Prompts of some models are computed with bidirectional attention, so output tokens
must not be computed together with them.

The engine is not thread-safe. All calls must come from one thread.
"""

from __future__ import annotations

import logging
import time
from bisect import insort
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from llava_wire.messages.event import ErrorCode, JobError
from torch import Tensor

from llava_worker.engine.core.input_batch import PromptRows
from llava_worker.engine.core.outputs import EngineStats, PromptLogprobs, StepOutput
from llava_worker.engine.core.scheduler import Chunk, priority_key
from llava_worker.engine.core.sequence import ImageSpan, Sequence, SequenceRejected
from llava_worker.engine.core.sequence_outputs import (
    begin_output,
    deadline_error,
    next_output,
    out_of_memory_error,
)
from llava_worker.engine.core.step_timer import StepTimer
from llava_worker.engine.core.validation import SamplingLimits, SequenceValidator
from llava_worker.engine.sampling.grammar_bitmask import BitmaskBuilder
from llava_worker.engine.sampling.logprobs import add_logprobs_of_prompt
from llava_worker.engine.sampling.sampler import Sampler
from llava_worker.engine.transformers.processor import ImageInputs, ModelProcessor, ProcessorError
from llava_worker.engine.transformers.runner import SequenceGroup, TransformersRunner
from llava_worker.model.gpu.current_gpu import use_device

__all__ = ["RgbCheck", "TransformersEngine"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RgbCheck:
    """The check for RGB images of any size."""

    def problem(self, image: ImageSpan, num_bytes: int) -> str | None:
        if image.width > 0 and image.height > 0 and num_bytes == image.width * image.height * 3:
            return None
        return (
            f"the pixel data is {num_bytes} bytes, which is not the size of an RGB image of "
            f"{image.width}x{image.height} pixels."
        )


@dataclass(slots=True)
class _Counters:
    num_steps: int = 0
    num_batched_sequences: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_images: int = 0


class TransformersEngine:
    """Runs one model. Each added sequence gets exactly one final `StepOutput`, unless it is aborted."""

    def __init__(
        self,
        runner: TransformersRunner,
        processor: ModelProcessor,
        *,
        image_token_id: int,
        vocab_size: int,
        eos_ids: frozenset[int],
        context_length: int,
        max_num_sequences: int,
        max_cached_tokens: int,
        is_grouped: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an engine.

        ``is_grouped`` is true if sequences can be padded. The KV caches contain at most ``max_cached_tokens``
        tokens, including padding, which must be at least ``context_length``. Deadlines are compared with
        ``now()``, which returns seconds.
        """
        if context_length > max_cached_tokens:
            raise ValueError(
                f"A context of {context_length} tokens does not fit in {max_cached_tokens} cached tokens."
            )
        self.context_length = context_length
        self.max_sequences = max_num_sequences
        self.is_grouped = is_grouped  # can be set while the engine is empty
        self.timer = StepTimer()
        self._runner = runner
        self._processor = processor
        self._image_token_id = image_token_id
        self._vocab_size = vocab_size
        self._eos_ids = frozenset(token_id for token_id in eos_ids if 0 <= token_id < vocab_size)
        self._validator = SequenceValidator(
            context_length=context_length,
            sampling=SamplingLimits(vocab_size=vocab_size, num_eos_ids=len(self._eos_ids)),
            images=RgbCheck(),
        )
        self._max_cached_tokens = max_cached_tokens
        self._now = now
        self._sampler = Sampler()
        self._bitmasks = BitmaskBuilder()
        self._image_thread = ThreadPoolExecutor(1, thread_name_prefix="image-processor")
        self._images: dict[str, Future[ImageInputs]] = {}  # keyed by seq_id
        self._waiting: list[Sequence] = []  # sorted by priority_key, like the running sequences
        self._running: list[Sequence] = []
        self._groups: list[SequenceGroup] = []
        self._complete: list[StepOutput] = []  # final outputs of sequences that were complete when added
        self._num_added = 0
        self._counters = _Counters()

    @property
    def num_sequences(self) -> int:
        """The number of sequences whose final output has not been returned yet."""
        return len(self._waiting) + len(self._running) + len(self._complete)

    def bind_thread(self) -> None:
        """Select the model's GPU in the calling thread, which will run the engine."""
        use_device(self._runner.device)

    def add(self, sequence: Sequence) -> None:
        """Add a sequence. Raises SequenceRejected if the engine cannot serve it."""
        if any(other.seq_id == sequence.seq_id for other in [*self._waiting, *self._running]):
            message = f"A sequence with ID {sequence.seq_id} is already in the engine."
            raise SequenceRejected(JobError(ErrorCode.INVALID_REQUEST, message))
        if sequence.is_embedding:
            message = "Embeddings are not supported by the transformers engine, which serves this model."
            raise SequenceRejected(JobError(ErrorCode.INVALID_REQUEST, message))
        self._validator.check(sequence)
        if (output := begin_output(sequence, self._eos_ids, self.context_length)) is not None:
            self._complete.append(output)
            return
        sequence.arrival = self._num_added
        self._num_added += 1
        if sequence.images:
            self._images[sequence.seq_id] = self._image_thread.submit(
                self._processor.image_inputs, sequence.images, sequence.pixels
            )
        insort(self._waiting, sequence, key=priority_key)

    def abort(self, seq_id: str) -> None:
        """Drop a sequence without returning an output. Unknown IDs are ignored."""
        self._complete = [output for output in self._complete if output.seq_id != seq_id]
        for sequence in [*self._waiting, *self._running]:
            if sequence.seq_id == seq_id:
                self._remove([sequence])

    def step(self) -> list[StepOutput]:
        """Compute one token of each running sequence, and at most one prompt."""
        outputs, self._complete = self._complete, []
        outputs += self._end_overdue()
        if not self._waiting and not self._running:
            return outputs
        with self.timer("schedule"):
            self._preempt_for_memory()
            self._preempt_for_priority()
        self._counters.num_steps += 1
        computed: list[tuple[Sequence, Tensor]] = []
        with self.timer("forward"):
            for group in list(self._groups):
                computed += self._decode(group, outputs)
        if (sequence := self._next_waiting()) is not None:
            computed += self._start(sequence, outputs)
        complete = [
            (sequence, row) for sequence, row in computed if sequence.num_computed == sequence.num_tokens
        ]
        if complete:
            outputs += self._sample(complete)
        return outputs

    def idle(self) -> bool:
        """Return False, because there is nothing to prepare."""
        return False

    def stats(self) -> EngineStats:
        counters, seconds = self._counters, self.timer.seconds
        return EngineStats(
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_blocks=self._max_cached_tokens,
            num_free_blocks=max(0, self._max_cached_tokens - self._num_cached_tokens()),
            num_steps_total=counters.num_steps,
            num_batched_sequences_total=counters.num_batched_sequences,
            num_prefill_tokens_total=counters.num_prefill_tokens,
            num_decode_tokens_total=counters.num_decode_tokens,
            num_generated_tokens_total=counters.num_generated_tokens,
            num_preemptions_total=counters.num_preemptions,
            num_encoded_images_total=counters.num_images,
            schedule_s_total=seconds["schedule"],
            encode_s_total=seconds["encode"],
            forward_s_total=seconds["forward"],
            sample_s_total=seconds["sample"],
            postprocess_s_total=seconds["postprocess"],
        )

    def _end_overdue(self) -> list[StepOutput]:
        now = self._now()
        overdue = [
            (sequence, error)
            for sequence in [*self._waiting, *self._running]
            if (error := deadline_error(sequence, now)) is not None
        ]
        return [self._fail(sequence, error) for sequence, error in overdue]

    def _num_cached_tokens(self) -> int:
        return sum(group.num_padded_tokens for group in self._groups)

    def _num_cached_tokens_with(self, sequence: Sequence) -> int:
        """Return the number of cached tokens in the next step if the sequence is started, with padding."""
        num_tokens = len(sequence.prompt_ids)
        if not self.is_grouped or not self._groups:
            return self._num_cached_tokens() + len(self._running) + num_tokens
        (group,) = self._groups
        return (len(group.sequences) + 1) * max(group.length + 1, num_tokens)

    def _preempt_for_memory(self) -> None:
        """Preempt sequences until the next token of all others fits in the KV caches."""
        while len(self._running) > 1:
            if self._num_cached_tokens() + len(self._running) <= self._max_cached_tokens:
                return
            self._preempt([self._running[-1]])

    def _preempt_for_priority(self) -> None:
        """Preempt running sequences to make room for the first waiting one if its priority is higher."""
        while self._waiting and self._running and self._running[-1].priority < self._waiting[0].priority:
            if self._has_room(self._waiting[0]):
                return
            self._preempt([self._running[-1]])

    def _has_room(self, sequence: Sequence) -> bool:
        has_memory = self._num_cached_tokens_with(sequence) <= self._max_cached_tokens
        return not self._running or (len(self._running) < self.max_sequences and has_memory)

    def _next_waiting(self) -> Sequence | None:
        """Return the next sequence to start. If nothing is running, wait until its images are processed."""
        for sequence in self._waiting:
            if not self._has_room(sequence):
                return None
            images = self._images.get(sequence.seq_id)
            if images is None or images.done() or not self._running:
                return sequence
        return None

    def _decode(self, group: SequenceGroup, outputs: list[StepOutput]) -> list[tuple[Sequence, Tensor]]:
        """Compute one token for each sequence of the group. Return the logits of each."""
        inputs = [
            sequence.token_ids(sequence.num_computed, sequence.num_computed + 1)[0]
            for sequence in group.sequences
        ]
        try:
            logits = self._runner.decode(group, inputs)
        except torch.OutOfMemoryError as error:
            reason = str(error)
        else:
            for sequence in group.sequences:
                sequence.num_computed += 1
            self._counters.num_decode_tokens += len(inputs)
            self._counters.num_batched_sequences += len(inputs)
            return list(zip(group.sequences, logits, strict=True))
        # Memory is released outside the except block, because the traceback keeps tensors alive.
        self._recover_memory(group.sequences[0], list(group.sequences), reason, outputs)
        return []

    def _start(self, sequence: Sequence, outputs: list[StepOutput]) -> list[tuple[Sequence, Tensor]]:
        """Compute the prompt of a waiting sequence. Return the logits of its last token."""
        with self.timer("encode"):
            images, error = self._image_inputs(sequence)
        if error is not None:
            outputs.append(self._fail(sequence, error))
            return []
        try:
            with self.timer("forward"):
                logits = self._compute_prompt(sequence, images)
        except torch.OutOfMemoryError as oom:
            reason = str(oom)
        else:
            self._waiting.remove(sequence)
            insort(self._running, sequence, key=priority_key)
            self._counters.num_prefill_tokens += len(sequence.prompt_ids)
            self._counters.num_batched_sequences += 1
            self._counters.num_images += len(sequence.images)
            return [(sequence, logits)]
        self._recover_memory(sequence, list(self._running), reason, outputs)
        return []

    def _compute_prompt(self, sequence: Sequence, images: ImageInputs | None) -> Tensor:
        needs_logprobs = sequence.needs_prompt_logprobs
        prefill = self._runner.prefill(sequence.prompt_ids, images, has_all_logits=needs_logprobs)
        if needs_logprobs:
            sequence.prompt_logprobs = PromptLogprobs()
            rows = PromptRows(sequence, row=0, first=1, length=len(sequence.prompt_ids) - 1)
            add_logprobs_of_prompt(prefill.logits, rows)
        sequence.num_computed = len(sequence.prompt_ids)
        group = SequenceGroup(sequence, prefill)
        if self.is_grouped and self._groups:
            self._groups[0].join(group)
        else:
            self._groups.append(group)
        return prefill.logits[-1]

    def _image_inputs(self, sequence: Sequence) -> tuple[ImageInputs | None, JobError | None]:
        """Wait for the images of the sequence. Return them, or the error that ends the sequence."""
        if not sequence.images:
            return None, None
        try:
            images = self._images[sequence.seq_id].result()
        except ProcessorError as error:
            message = f"The model's image processor failed: {error}. Send other images."
            return None, JobError(ErrorCode.INVALID_REQUEST, message)
        num_expected = images.token_ids.count(self._image_token_id)
        num_tokens = sequence.prompt_ids.count(self._image_token_id)
        if num_tokens == num_expected:
            return images, None
        message = (
            f"The prompt has {num_tokens} image tokens, but the model's image processor returned "
            f"{num_expected}. Retry the request."
        )
        return None, JobError(ErrorCode.INTERNAL_ERROR, message)

    def _sample(self, computed: list[tuple[Sequence, Tensor]]) -> list[StepOutput]:
        sequences = [sequence for sequence, _ in computed]
        with self.timer("sample"):
            bitmask = self._bitmasks.start(sequences, self._vocab_size)
            chunks = [Chunk(sequence, sequence.num_tokens - 1, sequence.num_tokens) for sequence in sequences]
            logits = torch.stack([row for _, row in computed])
            results = self._sampler.sample(logits, chunks, bitmask=bitmask, vectors={}).results()
        outputs = []
        with self.timer("postprocess"):
            for sequence, result in zip(sequences, results, strict=True):
                if result.error is not None:
                    outputs.append(StepOutput(sequence.seq_id, error=result.error))
                else:
                    outputs.append(next_output(sequence, result.tokens[0], self.context_length))
            self._counters.num_generated_tokens += sum(output.token_id is not None for output in outputs)
            ended = {output.seq_id for output in outputs if output.is_final}
            self._remove([sequence for sequence in sequences if sequence.seq_id in ended])
        return outputs

    def _fail(self, sequence: Sequence, error: JobError) -> StepOutput:
        self._remove([sequence])
        return StepOutput(sequence.seq_id, error=error)

    def _recover_memory(
        self, failed: Sequence, preempted: list[Sequence], reason: str, outputs: list[StepOutput]
    ) -> None:
        """Preempt sequences after an out-of-memory error, or end the failed one if no other is running.

        The KV caches of the preempted sequences may be incomplete. Fewer tokens are cached from now on.
        """
        num_running = len(self._running)
        logger.warning("seq_id=%s: out of memory, %d running: %s", failed.seq_id, num_running, reason)
        if self._running in ([], [failed]):
            outputs.append(self._fail(failed, out_of_memory_error()))
        else:
            limit = max(self.context_length, self._num_cached_tokens() * 3 // 4)
            self._max_cached_tokens = min(self._max_cached_tokens, limit)
            self._preempt(preempted)
        self._runner.release_memory()

    def _preempt(self, sequences: list[Sequence]) -> None:
        """Drop the keys and values of running sequences, which wait until they can be recomputed."""
        self._drop_cached(sequences)
        for sequence in sequences:
            self._running.remove(sequence)
            insort(self._waiting, sequence, key=priority_key)
            sequence.num_computed = 0
        self._counters.num_preemptions += len(sequences)

    def _remove(self, sequences: list[Sequence]) -> None:
        self._drop_cached(sequences)
        for sequence in sequences:
            if (images := self._images.pop(sequence.seq_id, None)) is not None:
                images.cancel()
        self._waiting = [sequence for sequence in self._waiting if sequence not in sequences]
        self._running = [sequence for sequence in self._running if sequence not in sequences]

    def _drop_cached(self, sequences: list[Sequence]) -> None:
        """Drop the keys and values of these sequences."""
        groups, self._groups = self._groups, []
        for group in groups:
            remaining = [sequence for sequence in group.sequences if sequence not in sequences]
            if remaining:
                group.keep(remaining)
                self._groups.append(group)
