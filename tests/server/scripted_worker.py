"""A worker that uses a real queue (JobConsumer and Valkey). A job's last message determines the output:

"say one two three"     "one two three" with one token per word and finish reason "stop"
"say-all ..."           the same in a single event
"seed"                  the job's seed
"count N"               "1 2 ... N" with finish reason "length"
"refuse CODE"           no tokens; the job fails with this ErrorCode
"break CODE"            "half "; the job then fails with this ErrorCode
"go-on"                 a token every few milliseconds until the queue rejects an event
"silent"                nothing until ``release`` is set, then "done"
"hold"                  "begun " immediately, and "done" once ``release`` is set
anything else           the messages, as received

Log probabilities: all text of an event belongs to the event's first token. The k-th alternative to token t is
token t + k, whose log probability is lower by k. Tokenization: the token IDs of a prompt are its UTF-8 bytes
and a 0 for each image. Detokenization: a token ID below the surrogate range becomes the character with that
code point. Embedding: the vector is (length in bytes or tokens, number of images). Prompt: the tokens in
the first event are a BOS token followed by one token per character, or the token IDs in the request. The rank
of a token is its position. A job with ``max_tokens`` 0 produces no tokens.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Sequence

from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import (
    ErrorCode,
    Event,
    Final,
    FinishReason,
    JobError,
    TokenLogprob,
    TokenScore,
)
from llava_wire.messages.heartbeat import Heartbeat, ImageSpec
from llava_wire.messages.job import ImageRef
from llava_wire.redis.shards import queue_shards
from llava_wire.worker_side.consumer import JobConsumer
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

from tests.machine_speed import scaled

__all__ = ["MODEL", "SPEC", "ScriptedWorker"]

MODEL = "scripted"
SPEC = ImageSpec(side=28, tokens_per_tile=4)
_PROMPT_TOKENS, _CACHED_TOKENS = 11, 3


class ScriptedWorker:
    """A worker that runs in a thread until ``stop`` is called.

    ``assignments`` contains all assignments that the worker has pulled. ``refused`` contains the IDs of jobs
    for which the queue rejected an event.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = MODEL,
        spec: ImageSpec = SPEC,
        context_length: int = 4096,
        capacity: int = 64,
        max_token_bytes: int = 0,
        model_digest: str = "",
        num_shards: int = 1,
        queue_urls: Sequence[str] = (),
        image_store: str = "",
    ) -> None:
        self.model_digest = model_digest
        self.assignments: list[Assignment] = []
        self.refused: set[str] = set()
        self.release = threading.Event()
        self.url = url
        self._shards = queue_shards(queue_urls or [url], num_shards, image_store)
        self._heartbeat = Heartbeat(
            worker_id=f"scripted-{id(self)}",
            model=model,
            model_digest=model_digest,
            image_spec=spec,
            context_length=context_length,
            capacity=capacity,
            max_token_bytes=max_token_bytes,
            device="none",
            precision="fp32",
            started_at=time.time(),
        )
        self._is_stopping = threading.Event()
        self._is_up = threading.Event()
        self._emitting = asyncio.Lock()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="scripted-worker", daemon=True
        )

    def start(self) -> ScriptedWorker:
        self._thread.start()
        assert self._is_up.wait(scaled(30))
        return self

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join(scaled(30))
        assert not self._thread.is_alive()

    def stop_pulling(self) -> None:
        """Stop pulling jobs. Stay registered as live for a minute, so that new jobs are accepted and wait."""
        self.stop()

        async def announce() -> None:
            consumer = await ShardedConsumer.connect(self._shards, self._heartbeat, lease_s=60)
            await consumer.send_heartbeat()
            await consumer.aclose()

        asyncio.run(announce())

    async def _run(self) -> None:
        consumer = await ShardedConsumer.connect(self._shards, self._heartbeat)
        self._is_up.set()
        tasks = [asyncio.create_task(self._beat(consumer)), asyncio.create_task(self._pull(consumer))]
        while not self._is_stopping.is_set() and not any(task.done() for task in tasks):
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        await consumer.deregister()
        await consumer.aclose()

    async def _beat(self, consumer: ShardedConsumer) -> None:
        while True:
            await consumer.send_heartbeat()
            async with self._emitting:
                for shard in consumer.shards:
                    await shard.emit([])
            await asyncio.sleep(0.3)

    async def _pull(self, consumer: ShardedConsumer) -> None:
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                while len(running) >= self._heartbeat.capacity:
                    _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for assignment in await consumer.pull(self._heartbeat.capacity - len(running)):
                    self.assignments.append(assignment)
                    shard = consumer.shard_of(assignment.job.job_id)
                    running.add(asyncio.create_task(self._generate(shard, assignment)))
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _generate(self, consumer: JobConsumer, assignment: Assignment) -> None:
        if assignment.job.task != "answer" or assignment.job.sampling.max_tokens == 0:
            await self._run_task(consumer, assignment)
            return
        text = _last_text(assignment)
        verb, _, rest = text.partition(" ")
        writer = _Writer(self, consumer, assignment)
        if verb == "say":
            await writer.words(rest.split(" "))
            await writer.end(FinishReason.STOP)
        elif verb == "say-all":
            await writer.write(rest, tokens=len(rest.split()), final=_final(FinishReason.STOP))
        elif verb == "seed":
            await writer.words([str(assignment.job.sampling.seed)])
            await writer.end(FinishReason.STOP)
        elif verb == "count":
            await writer.words([str(number) for number in range(1, int(rest) + 1)])
            await writer.end(FinishReason.LENGTH)
        elif verb in ("refuse", "break"):
            await writer.words(["half "] if verb == "break" else [])
            await writer.fail(ErrorCode(rest))
        elif verb == "go-on":
            while await writer.write("more "):
                await asyncio.sleep(0.005)
        elif verb in ("silent", "hold"):
            await writer.words(["begun "] if verb == "hold" else [])
            await asyncio.to_thread(self.release.wait, 30)
            await writer.words(["done"])
            await writer.end(FinishReason.STOP)
        else:
            await writer.write(_as_received(assignment), final=_final(FinishReason.STOP))

    async def _run_task(self, consumer: JobConsumer, assignment: Assignment) -> None:
        job = assignment.job
        if job.task == "detokenize":
            text = "".join(map(_character, job.prompt_ids))
            event = Event(0, (), text, _final(FinishReason.STOP))
        elif job.task == "embed":
            await self._embed(consumer, assignment)
            return
        elif job.task == "answer":
            await _Writer(self, consumer, assignment).end(FinishReason.LENGTH)
            return
        else:
            parts = [part for message in job.messages for part in message.parts]
            token_ids = [b for part in parts for b in (part.encode() if isinstance(part, str) else b"\0")]
            event = Event(0, tuple(token_ids), "", _final(FinishReason.STOP))
        async with self._emitting:
            await consumer.emit([(assignment, event)])

    async def _embed(self, consumer: JobConsumer, assignment: Assignment) -> None:
        job, text = assignment.job, _last_text(assignment) if assignment.job.messages else ""
        if text.startswith("refuse "):
            await _Writer(self, consumer, assignment).fail(ErrorCode(text.removeprefix("refuse ")))
            return
        length = len(job.prompt_ids) or len(text.encode())
        vector = struct.pack("<2f", length, len(job.images))
        final = Final(reason=FinishReason.STOP, num_prompt_tokens=length + len(job.images), vector=vector)
        async with self._emitting:
            await consumer.emit([(assignment, Event(0, (), "", final))])


class _Writer:
    def __init__(self, worker: ScriptedWorker, consumer: JobConsumer, assignment: Assignment) -> None:
        self._worker = worker
        self._consumer = consumer
        self._assignment = assignment
        self._offset = len(assignment.token_ids)
        self._is_begun = self._offset > 0

    async def write(self, text: str, *, tokens: int = 1, final: Final | None = None) -> bool:
        """Send an event. Return False if this job is no longer assigned to this worker."""
        job_id = self._assignment.job.job_id
        logprobs = self._logprobs(text, tokens)
        event = Event(
            self._offset,
            tuple(range(tokens)),
            text,
            final,
            logprobs,
            num_prompt_tokens=0 if self._offset else _PROMPT_TOKENS,
            prompt=() if self._is_begun else _echo(self._assignment),
            model_digest="" if self._offset else self._worker.model_digest,
        )
        self._is_begun = True
        async with self._worker._emitting:
            result = await self._consumer.emit([(self._assignment, event)])
        self._worker.refused |= result.refused
        self._offset = event.next_offset
        return job_id not in result.refused

    def _logprobs(self, text: str, tokens: int) -> tuple[TokenLogprob, ...]:
        num_top = self._assignment.job.sampling.num_logprobs
        if num_top is None:
            return ()
        pieces = [text.encode(), *[b""] * tokens][:tokens]
        return tuple(
            TokenLogprob(
                TokenScore(token_id, piece, -0.5),
                tuple(TokenScore(token_id + k, piece, -0.5 - k) for k in range(num_top)),
            )
            for token_id, piece in enumerate(pieces)
        )

    async def words(self, words: Sequence[str]) -> None:
        for index, word in enumerate(words):
            await self.write(word if index == 0 else f" {word}")

    async def end(self, reason: FinishReason) -> None:
        await self.write("", tokens=1 if reason is FinishReason.STOP else 0, final=_final(reason))

    async def fail(self, code: ErrorCode) -> None:
        error = JobError(code, f"scripted failure {code.value}")
        await self.write("", tokens=0, final=Final(reason=FinishReason.ERROR, error=error))


def _echo(assignment: Assignment) -> tuple[TokenLogprob, ...]:
    job = assignment.job
    if not job.has_prompt_event:
        return ()
    num_top = job.num_prompt_logprobs or 0
    token_ids = job.prompt_ids or (0, *map(ord, _last_text(assignment)))
    texts = [_character(token_id).encode() if token_id else b"" for token_id in token_ids]
    return tuple(
        TokenLogprob(
            TokenScore(token_id, text, -position / 8),
            tuple(TokenScore(token_id + k, text, -position / 8 - k) for k in range(num_top)),
            rank=0 if job.num_prompt_logprobs is None else position,
        )
        for position, (token_id, text) in enumerate(zip(token_ids, texts, strict=True))
    )


def _character(token_id: int) -> str:
    """Return the character that a token ID represents, or "?" if there is none."""
    return chr(token_id) if token_id < 0xD800 else "?"


def _final(reason: FinishReason) -> Final:
    return Final(reason=reason, num_prompt_tokens=_PROMPT_TOKENS, num_cached_tokens=_CACHED_TOKENS)


def _last_text(assignment: Assignment) -> str:
    if assignment.job.prompt_ids:
        return f"say {' '.join(map(str, assignment.job.prompt_ids))}"
    parts = [part for part in assignment.job.messages[-1].parts if isinstance(part, str)]
    return parts[-1] if parts else ""


def _as_received(assignment: Assignment) -> str:
    turns = []
    for message in assignment.job.messages:
        shown = [f"[{p.width}x{p.height}]" if isinstance(p, ImageRef) else p for p in message.parts]
        turns.append(f"{message.role}:{''.join(shown)}")
    return "|".join(turns)
