"""The engine: `add` sequences, call `step` until they are answered.

    step = schedule        which tokens of which sequences go through the model now
           guess           tokens that may follow, where that pays
           run             one packed forward pass; a token, or with right drafts several, for each
                           sequence that is due one
           postprocess     append, finish, free

The first three are the `Pipeline`'s, which may have launched the next step before this one is read.

It is not thread-safe: one thread owns it and calls everything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from llava_worker.engine.async_pipeline import Pipeline
from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.in_flight_step import Choice, StepResult
from llava_worker.engine.core.outputs import EngineStats, Finish, StepOutput
from llava_worker.engine.core.sampling_limits import SamplingLimits
from llava_worker.engine.core.scheduler import Chunk, Scheduler
from llava_worker.engine.core.sequence import Sequence, SequenceRefused
from llava_worker.engine.core.validation import Admission
from llava_worker.engine.image_embedding_queue import PictureQueue
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.sampling.logits_processor import Steering
from llava_worker.engine.speculation.drafter import Drafter
from llava_worker.engine.speculation.speculative_decoding import Speculation
from llava_worker.engine.stats.counters import Tally

__all__ = ["Engine"]


class Engine:
    """Continuous batching over one model.

    Every sequence that was added and not aborted ends in exactly one final `StepOutput`; its blocks are free
    before that output is returned. A failure of one sequence leaves the others' answers as they are.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        eos_ids: frozenset[int],
        context_length: int,
        max_num_sequences: int,
        max_batch_tokens: int,
        is_sharing_prefixes: bool = True,
        drafter: Drafter | None = None,
        is_overlapping: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a ``drafter`` a step gives a sequence one token. One that ``is_overlapping`` launches steps
        ahead; it tells the same. Deadlines are times of ``now``, in s."""
        cache = runner.cache
        capacity = cache.num_blocks * cache.block_size
        if context_length > capacity:
            raise ValueError(f"a context of {context_length} tokens does not fit a KV cache of {capacity}")
        config = runner.model.config
        vocab_size = config.text_config.vocab_size
        self._eos_ids = frozenset(token_id for token_id in eos_ids if 0 <= token_id < vocab_size)
        self._admission = Admission(
            context_length=context_length,
            sampling=SamplingLimits(vocab_size=vocab_size, num_eos_ids=len(self._eos_ids)),
            pictures=config.image_layout(),
        )
        self.context_length = context_length
        self.max_sequences = max_num_sequences
        self._runner = runner
        self._blocks = BlockManager(cache.num_blocks, cache.block_size, is_sharing=is_sharing_prefixes)
        self._scheduler = Scheduler(
            self._blocks,
            max_num_sequences=max_num_sequences,
            max_batch_tokens=max_batch_tokens,
            encoded=runner.vision_cache,
        )
        self._pictures = PictureQueue(runner, max_tokens=max_batch_tokens)
        self._speculation = Speculation(
            drafter, self._blocks, context_length=context_length, max_batch_tokens=max_batch_tokens
        )
        self._pipeline = Pipeline(
            runner, self._scheduler, self._speculation, self._blocks, is_overlapping=is_overlapping
        )
        self._sequences: dict[str, Sequence] = {}
        self._complete: list[StepOutput] = []  # ended on arrival; told in the next step
        self._now = now
        self.clock = runner.clock
        self._tally = Tally()

    @property
    def num_sequences(self) -> int:
        """Sequences that still owe a final output, waiting and running."""
        return len(self._sequences) + len(self._complete)

    @property
    def is_recorded(self) -> bool:
        """Whether steps that only decode run from recordings."""
        return self._runner.graphs is not None

    @property
    def is_overlapping(self) -> bool:
        """Whether steps are launched ahead where they can be. May change between two steps."""
        return self._pipeline.is_overlapping

    @is_overlapping.setter
    def is_overlapping(self, value: bool) -> None:
        self._pipeline.is_overlapping = value

    def add(self, sequence: Sequence) -> None:
        """Take a sequence. Raises SequenceRefused, with nothing taken, for one that can't be served."""
        if sequence.seq_id in self._sequences:
            raise SequenceRefused("invalid_request", f"there is a sequence {sequence.seq_id} already")
        self._admission.check(sequence)
        finish = self._finish_of(sequence)
        if finish is not None and not sequence.owes_prompt_logprobs:
            self._complete.append(StepOutput(sequence.seq_id, finish=finish))
            return
        sequence.steering = Steering.of(sequence.sampling, sequence.prompt_ids, self._eos_ids)
        sequence.matcher = None if sequence.grammar is None else sequence.grammar.start()
        self._sequences[sequence.seq_id] = sequence
        self._queue_of(sequence).add(sequence)

    def abort(self, seq_id: str) -> None:
        """Forget a sequence, without an output; its blocks are free at once. An unknown one is no error."""
        self._complete = [output for output in self._complete if output.seq_id != seq_id]
        sequence = self._sequences.pop(seq_id, None)
        if sequence is not None:
            self._queue_of(sequence).remove(sequence)

    def step(self) -> list[StepOutput]:
        """One forward pass; the news of every sequence that has any."""
        outputs, self._complete = self._complete, []
        outputs += self._end_overdue()
        for sequence, output in self._pictures.step():
            self._end(sequence)
            outputs.append(output)
        step = self._pipeline.next()
        if step is None:
            return outputs
        with self.clock("postprocess"):
            self._tally.count(step.chunks, step.results)
            self._settle(step.chunks)
            outputs += [output for result in step.results for output in self._postprocess(result)]
            self._speculation.settle(step.chunks, step.results, step.seconds)
        return outputs

    def idle(self) -> bool:
        """What spares later steps a wait, for some milliseconds; False if there is nothing left of it."""
        return self._runner.cache.prefault_more()

    def stats(self) -> EngineStats:
        pictures, seconds = self._runner.vision_cache, self.clock.seconds
        return EngineStats(
            num_waiting=len(self._scheduler.waiting) + len(self._pictures),
            num_running=len(self._scheduler.running),
            num_blocks=self._blocks.num_blocks,
            num_free_blocks=self._blocks.num_free,
            image_cache_bytes=pictures.num_bytes,
            num_steps_total=self._tally.num_steps,
            num_batched_sequences_total=self._tally.num_sequences,
            num_prefill_tokens_total=self._tally.num_prefill_tokens,
            num_decode_tokens_total=self._tally.num_decode_tokens,
            num_generated_tokens_total=self._tally.num_generated_tokens,
            num_cached_tokens_total=self._scheduler.num_cached_tokens,
            num_preemptions_total=self._scheduler.num_preemptions,
            num_draft_tokens_total=self._tally.num_draft_tokens,
            num_accepted_tokens_total=self._tally.num_accepted_tokens,
            num_encoded_images_total=self._runner.num_encoded_images,
            num_image_cache_hits_total=pictures.num_hits,
            num_image_cache_misses_total=pictures.num_misses,
            num_image_cache_evictions_total=pictures.num_evictions,
            schedule_s_total=seconds["schedule"],
            prepare_s_total=seconds["prepare"],
            encode_s_total=seconds["encode"],
            forward_s_total=seconds["forward"],
            sample_s_total=seconds["sample"],
            postprocess_s_total=seconds["postprocess"],
        )

    def check(self) -> None:
        """Prove that no block is lost or shared wrongly. Raises BlockAccountingError."""
        self._blocks.check(self._scheduler)

    def _end_overdue(self) -> list[StepOutput]:
        now, outputs = self._now(), []
        for sequence in list(self._sequences.values()):
            if sequence.deadline_s is not None and sequence.deadline_s <= now:
                self._end(sequence)
                told = f"the deadline came after {len(sequence.output_ids)} tokens"
                error = f"{told}: try again later, or ask for less"
                outputs.append(StepOutput(sequence.seq_id, error=error, error_code="deadline_exceeded"))
        return outputs

    def _settle(self, chunks: list[Chunk]) -> None:
        """The chunks' keys and values are in the cache now; full blocks may be shared."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            self._blocks.publish(sequence)

    def _postprocess(self, result: StepResult) -> Iterator[StepOutput]:
        """The sequence's news, in order; nothing after its end, however many tokens were chosen."""
        for choice in result.choices:
            output = self._append(result.chunk.sequence, choice)
            yield output
            if output.is_final:
                break

    def _append(self, sequence: Sequence, choice: Choice) -> StepOutput:
        if choice.error is not None:
            if choice.error_code == "internal_error":
                self._blocks.forget(sequence)  # its step was not made
            self._end(sequence)
            return StepOutput(sequence.seq_id, error=choice.error, error_code=choice.error_code)
        told = sequence.prompt_logprobs if sequence.owes_prompt_logprobs else ()
        if choice.token_id is None or any(math.isnan(token.logprob) for token in told):
            return self._fail(sequence)
        if sequence.is_embedding:
            return self._end_embedding(sequence, choice.vector)
        if sequence.max_new_tokens == 0:  # all that was asked for is its prompt's
            self._end(sequence)
            return StepOutput(sequence.seq_id, finish="length", prompt_logprobs=tuple(told))
        if sequence.num_computed < sequence.num_tokens:  # the last token was a draft: it went through as one
            sequence.num_computed = sequence.num_tokens
            self._blocks.publish(sequence)
        sequence.output_ids.append(choice.token_id)
        self._tally.num_generated_tokens += 1
        finish = self._finish_of(sequence)
        if finish is not None:
            self._end(sequence)
        return StepOutput(
            sequence.seq_id,
            choice.token_id,
            finish,
            num_cached_tokens=sequence.num_cached or 0,
            logprobs=choice.logprobs,
            prompt_logprobs=tuple(told),
        )

    def _finish_of(self, sequence: Sequence) -> Finish | None:
        """Why the answer is complete; None while it is not."""
        answer, sampling = sequence.output_ids, sequence.sampling
        if answer and answer[-1] in self._eos_ids and not sampling.ignore_eos:
            return "stop"
        if answer and answer[-1] in sampling.stop_token_ids:
            return "stop"
        if len(answer) >= sequence.max_new_tokens or sequence.num_tokens >= self.context_length:
            return "length"
        return None

    def _fail(self, sequence: Sequence) -> StepOutput:
        # Whatever went wrong, a bad weight or a bad bit, must not live on in what others share.
        self._blocks.forget(sequence)
        self._runner.forget(sequence)
        self._end(sequence)
        position = len(sequence.output_ids)
        return StepOutput(sequence.seq_id, error=f"the model's output at token {position} is not a number")

    def _end_embedding(self, sequence: Sequence, vector: bytes | None) -> StepOutput:
        if vector is None:
            return self._fail(sequence)
        self._end(sequence)
        num_cached = sequence.num_cached or 0
        return StepOutput(sequence.seq_id, finish="stop", num_cached_tokens=num_cached, vector=vector)

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.seq_id]
        self._queue_of(sequence).remove(sequence)

    def _queue_of(self, sequence: Sequence) -> Scheduler | PictureQueue:
        return self._pictures if sequence.is_picture_embedding else self._scheduler
