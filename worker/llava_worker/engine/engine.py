"""The engine. To use it, call `add` for each sequence, then call `step` until all sequences have finished.

    step = schedule        select the tokens of each sequence for this forward pass
           draft           propose draft tokens where they are likely to save time
           run             run one packed forward pass; each sequence without uncomputed tokens gets one new
                           token, or several if drafts are accepted
           postprocess     append tokens, finish sequences, free blocks

`AsyncPipeline` performs the first three phases and may launch the next step before it reads the results of
the current one.

The engine is not thread-safe. All calls must come from one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from llava_wire.messages.event import ErrorCode, JobError

from llava_worker.engine.async_pipeline import AsyncPipeline
from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.kv_cache_size import num_spare_tokens
from llava_worker.engine.core.model_runner_output import ChunkResult, TokenResult
from llava_worker.engine.core.outputs import EngineStats, StepOutput
from llava_worker.engine.core.scheduler import Chunk, Scheduler
from llava_worker.engine.core.sequence import Sequence, SequenceRejected
from llava_worker.engine.core.sequence_outputs import begin_output, deadline_error, next_output
from llava_worker.engine.core.validation import SamplingLimits, SequenceValidator, TileCheck
from llava_worker.engine.image_pooling import ImageEmbeddingQueue
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.speculation.drafter import Drafter
from llava_worker.engine.speculation.speculative_decoding import SpeculativeDecoding
from llava_worker.engine.stats.counters import EngineCounters
from llava_worker.model.gpu.current_gpu import use_device

__all__ = ["Engine"]


class Engine:
    """Runs one model with continuous batching.

    Each added sequence gets exactly one final `StepOutput`, unless it is aborted. The blocks of the sequence
    are freed before this output is returned. If one sequence fails, the outputs of the other sequences are
    not affected.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        eos_ids: frozenset[int],
        context_length: int,
        max_num_sequences: int,
        max_batch_tokens: int,
        encoder_cost: float = 0.0,
        max_token_gap_s: float = math.inf,
        is_sharing_prefixes: bool = True,
        drafter: Drafter | None = None,
        is_async: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an engine.

        If ``drafter`` is None, a sequence gets at most one token per step. If ``is_async`` is true, the
        engine launches each step before it reads the previous one, if possible. This does not change the
        outputs. Deadlines are compared with ``now()``, which returns seconds. For ``encoder_cost`` and
        ``max_token_gap_s``, see `Scheduler`.
        """
        cache = runner.cache
        capacity = cache.num_blocks * cache.block_size
        if context_length > capacity:
            raise ValueError(
                f"A context of {context_length} tokens does not fit in a KV cache of {capacity} tokens."
            )
        config = runner.model.config
        vocab_size = config.text_config.vocab_size
        self._eos_ids = frozenset(token_id for token_id in eos_ids if 0 <= token_id < vocab_size)
        self._validator = SequenceValidator(
            context_length=context_length,
            sampling=SamplingLimits(vocab_size=vocab_size, num_eos_ids=len(self._eos_ids)),
            images=TileCheck(config.image_layout()),
        )
        self.context_length = context_length
        self.max_sequences = max_num_sequences
        self._runner = runner
        self._blocks = BlockManager(cache.num_blocks, cache.block_size, is_sharing=is_sharing_prefixes)
        self._scheduler = Scheduler(
            self._blocks,
            max_num_sequences=max_num_sequences,
            max_batch_tokens=max_batch_tokens,
            encoded=runner.encoder_cache,
            encoder_cost=encoder_cost,
            max_token_gap_s=max_token_gap_s,
        )
        self._image_embeddings = ImageEmbeddingQueue(runner, max_tokens=max_batch_tokens)
        self._speculation = SpeculativeDecoding(
            drafter, self._blocks, context_length=context_length, max_batch_tokens=max_batch_tokens
        )
        self._pipeline = AsyncPipeline(
            runner, self._scheduler, self._speculation, self._blocks, is_async=is_async
        )
        self._sequences: dict[str, Sequence] = {}
        self._complete: list[StepOutput] = []  # final outputs of sequences that were complete when added
        self._now = now
        self.timer = runner.timer
        self._counters = EngineCounters()

    @property
    def num_sequences(self) -> int:
        """The number of sequences whose final output has not been returned yet."""
        return len(self._sequences) + len(self._complete)

    @property
    def has_cuda_graphs(self) -> bool:
        """Whether decode-only steps run as CUDA graphs."""
        return self._runner.graphs is not None

    @property
    def is_async(self) -> bool:
        """Whether each step is launched before the previous one is read, if possible.

        This property can be set between steps.
        """
        return self._pipeline.is_async

    @is_async.setter
    def is_async(self, value: bool) -> None:
        self._pipeline.is_async = value

    def bind_thread(self) -> None:
        """Select the model's GPU in the calling thread, which will run the engine."""
        use_device(self._runner.model.device)

    def add(self, sequence: Sequence) -> None:
        """Add a sequence. Raises SequenceRejected if the engine cannot serve it."""
        if sequence.seq_id in self._sequences:
            message = f"A sequence with ID {sequence.seq_id} is already in the engine."
            raise SequenceRejected(JobError(ErrorCode.INVALID_REQUEST, message))
        self._validator.check(sequence)
        if (output := begin_output(sequence, self._eos_ids, self.context_length)) is not None:
            self._complete.append(output)
            return
        self._sequences[sequence.seq_id] = sequence
        self._queue_of(sequence).add(sequence)

    def abort(self, seq_id: str) -> None:
        """Drop a sequence without returning an output, and free its blocks. Unknown IDs are ignored."""
        self._complete = [output for output in self._complete if output.seq_id != seq_id]
        sequence = self._sequences.get(seq_id)
        if sequence is not None:
            self._remove(sequence)

    def step(self) -> list[StepOutput]:
        """Run one forward pass and return the outputs of all sequences that made progress."""
        outputs, self._complete = self._complete, []
        outputs += self._end_overdue()
        for sequence, output in self._image_embeddings.step():
            self._remove(sequence)
            outputs.append(output)
        step = self._pipeline.next()
        if step is None:
            return outputs
        with self.timer("postprocess"):
            self._counters.count(step)
            self._mark_computed(step.chunks)
            for result in step.results:
                self._postprocess(result, outputs)
            self._speculation.record(step)
            # The same for all chunks. After an out-of-memory error, there may be none.
            is_ahead = bool(step.chunks) and step.chunks[0].is_ahead
            self._scheduler.record_duration(step.seconds, is_ahead=is_ahead)
        return outputs

    def idle(self) -> bool:
        """Spend a few milliseconds preparing for later steps.

        The memory of a CPU KV cache is allocated before requests need it: for the blocks that have ever been
        used, and for one more prompt. Return False if nothing is left to prepare.
        """
        num_used = self._blocks.num_ever_used * self._blocks.block_size
        num_spare = num_spare_tokens(self._runner.model.config, self.context_length)
        return self._runner.cache.prefault_more(num_used + num_spare)

    def stats(self) -> EngineStats:
        cache, seconds, counters = self._runner.encoder_cache, self.timer.seconds, self._counters
        return EngineStats(
            num_waiting=len(self._scheduler.waiting) + len(self._image_embeddings),
            num_running=len(self._scheduler.running),
            num_blocks=self._blocks.num_blocks,
            num_free_blocks=self._blocks.num_free,
            image_cache_bytes=cache.num_bytes,
            num_steps_total=counters.num_steps,
            num_batched_sequences_total=counters.num_sequences,
            num_prefill_tokens_total=counters.num_prefill_tokens,
            num_decode_tokens_total=counters.num_decode_tokens,
            num_generated_tokens_total=counters.num_generated_tokens,
            num_cached_tokens_total=self._scheduler.num_cached_tokens,
            num_preemptions_total=self._scheduler.num_preemptions,
            num_draft_tokens_total=counters.num_draft_tokens,
            num_accepted_tokens_total=counters.num_accepted_tokens,
            num_encoded_images_total=self._runner.num_encoded_images,
            num_image_cache_hits_total=cache.num_hits,
            num_image_cache_misses_total=cache.num_misses,
            num_image_cache_evictions_total=cache.num_evictions,
            schedule_s_total=seconds["schedule"],
            prepare_s_total=seconds["prepare"],
            encode_s_total=seconds["encode"],
            forward_s_total=seconds["forward"],
            sample_s_total=seconds["sample"],
            postprocess_s_total=seconds["postprocess"],
        )

    def check(self) -> None:
        """Raise BlockAccountingError if a block is lost or shared incorrectly."""
        self._blocks.check(self._scheduler)

    def _end_overdue(self) -> list[StepOutput]:
        now = self._now()
        overdue = [
            (sequence, error)
            for sequence in self._sequences.values()
            if (error := deadline_error(sequence, now)) is not None
        ]
        return [self._fail(sequence, error) for sequence, error in overdue]

    def _mark_computed(self, chunks: list[Chunk]) -> None:
        """Record that the KV cache contains the keys and values of the chunks, and publish full blocks."""
        block_size = self._blocks.block_size
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            if chunk.end // block_size > sequence.num_published:
                self._blocks.cache_full_blocks(sequence)

    def _postprocess(self, result: ChunkResult, outputs: list[StepOutput]) -> None:
        """Append the outputs of one sequence in order.

        Accepted drafts after the end of the output are dropped.
        """
        sequence = result.chunk.sequence
        if result.error is not None:
            outputs.append(self._fail(sequence, result.error))
            return
        for token in result.tokens:
            output = self._output_of(sequence, token)
            outputs.append(output)
            if output.is_final:
                break

    def _output_of(self, sequence: Sequence, token: TokenResult) -> StepOutput:
        if sequence.num_computed < sequence.num_tokens:  # the previous token was an accepted draft
            sequence.num_computed = sequence.num_tokens
            self._blocks.cache_full_blocks(sequence)
        output = next_output(sequence, token, self.context_length)
        self._counters.num_generated_tokens += output.token_id is not None
        if output.error is not None:
            # The blocks and the image features of the sequence may contain NaN too, so other sequences must
            # not reuse them.
            self._blocks.invalidate(sequence)
            self._runner.drop_features(sequence)
        if output.is_final:
            self._remove(sequence)
        return output

    def _fail(self, sequence: Sequence, error: JobError) -> StepOutput:
        self._remove(sequence)
        return StepOutput(sequence.seq_id, error=error)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.seq_id]
        self._queue_of(sequence).remove(sequence)

    def _queue_of(self, sequence: Sequence) -> Scheduler | ImageEmbeddingQueue:
        return self._image_embeddings if sequence.is_image_embedding else self._scheduler
