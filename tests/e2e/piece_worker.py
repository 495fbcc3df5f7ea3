"""A worker with real detokenization whose output tokens are dictated by the prompt.

A prompt that contains ``[[20 c3 a9 eos]]`` generates four tokens: three with these bytes (in hexadecimal) and
the end-of-sequence token. Each step returns up to three tokens and waits until those of the previous step are
being emitted, so events have different lengths.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llava_wire.messages.event import Event
from llava_wire.redis.shards import Shard
from llava_wire.worker_side.sharded_consumer import ShardedConsumer
from llava_worker.engine import EngineStats, Sequence, StepOutput, TokenLogprobs
from llava_worker.job_output import JobOutput
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from llava_worker.worker import Worker

from tests.machine_speed import scaled

EOS = ByteTokenizer.eos_token_id
_LAST_SPECIAL = 299
_SCRIPT = re.compile(r"\[\[([0-9a-z ]+)\]\]")


class PieceTokenizer(ByteTokenizer):
    """A byte tokenizer with additional tokens of several bytes that adds a leading space, as Llama's does."""

    strips_leading_space = True

    def token_bytes(self, token_id: int) -> bytes:
        if token_id > _LAST_SPECIAL:
            return bytes.fromhex(f"{token_id:x}"[1:])
        return super().token_bytes(token_id)

    def special_name(self, token_id: int) -> str:
        return "" if token_id > _LAST_SPECIAL else super().special_name(token_id)


def piece_id(piece: bytes) -> int:
    """Return the ID of the token with these bytes: one byte is its own ID, several follow a digit 1."""
    return piece[0] if len(piece) == 1 else int(f"1{piece.hex()}", 16)


def script(pieces: list[bytes], *, has_end: bool) -> str:
    """Return a prompt that generates these tokens."""
    return f"[[{' '.join([piece.hex() for piece in pieces] + ['eos'] * has_end)}]]"


class _PacedOutput(JobOutput):
    """The output of a job, which reports when it is emitted."""

    def __init__(self, is_emitted: threading.Event, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_emitted = is_emitted

    def next_event(self) -> Event | None:
        self._is_emitted.set()
        return super().next_event()


class PieceEngine:
    """An engine that generates the tokens written in the prompt."""

    max_sequences = 8
    context_length = 4096

    def __init__(self) -> None:
        self._sequences: dict[str, tuple[Sequence, list[int]]] = {}
        self._sizes = itertools.cycle([1, 2, 1, 3])
        self._is_emitted = threading.Event()

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    def create_output(self, *args: Any, **options: Any) -> JobOutput:
        return _PacedOutput(self._is_emitted, *args, **options)

    def bind_thread(self) -> None:
        pass

    def add(self, sequence: Sequence) -> None:
        self._is_emitted.set()
        prompt = bytes(token_id for token_id in sequence.prompt_ids if token_id < 256).decode()
        found = _SCRIPT.search(prompt)
        words = found[1].split() if found else ["eos"]
        token_ids = [EOS if word == "eos" else piece_id(bytes.fromhex(word)) for word in words]
        self._sequences[sequence.seq_id] = (sequence, token_ids[: sequence.max_new_tokens])

    def abort(self, seq_id: str) -> None:
        self._sequences.pop(seq_id, None)

    def step(self) -> list[StepOutput]:
        self._is_emitted.wait(0.05)
        self._is_emitted.clear()
        size = next(self._sizes)
        outputs = [
            output
            for sequence, _ in list(self._sequences.values())
            for output in self._advance(sequence, size)
        ]
        for output in outputs:
            if output.is_final:
                self.abort(output.seq_id)
        return outputs

    def idle(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._sequences))

    def _advance(self, sequence: Sequence, size: int) -> Iterator[StepOutput]:
        token_ids = self._sequences[sequence.seq_id][1]
        for token_id in token_ids[len(sequence.output_ids) :][:size]:
            sequence.output_ids.append(token_id)
            has_stopped = token_id == EOS or token_id in sequence.sampling.stop_token_ids
            is_last = has_stopped or len(sequence.output_ids) == len(token_ids)
            finish = ("stop" if has_stopped else "length") if is_last else None
            yield StepOutput(
                sequence.seq_id,
                token_id,
                finish,  # type: ignore[arg-type]
                logprobs=_logprobs(sequence, token_id),
                prompt_logprobs=_prompt_logprobs(sequence) if len(sequence.output_ids) == 1 else (),
            )
            if is_last:
                return


def _logprobs(sequence: Sequence, token_id: int) -> TokenLogprobs | None:
    num_top = sequence.sampling.num_logprobs
    if num_top is None:
        return None
    others = [token_id, EOS, 0xA9, 0xC3, piece_id(b" a"), _LAST_SPECIAL]
    top = tuple((other, -1.0 - rank) for rank, other in enumerate(others[:num_top]))
    return TokenLogprobs(-1.0, top)


def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprobs, ...]:
    if not sequence.needs_prompt_logprobs:
        return ()
    return tuple(TokenLogprobs(-1.0, ((token_id, -1.0),)) for token_id in sequence.prompt_ids[1:])


@contextmanager
def running_piece_worker(url: str) -> Iterator[None]:
    """Run a worker in a thread for the duration of the block. It serves the model ``echo``."""
    is_up, loop, workers = threading.Event(), asyncio.new_event_loop(), list[Worker]()

    async def serve() -> None:
        model = open_model(load_settings(["--model", "echo"]))
        engine = PieceEngine()
        consumer = await ShardedConsumer.connect([Shard(url)], model.heartbeat)
        workers.append(
            Worker(
                consumer,
                engine,
                prompts=model.prompts,
                tokenizer=PieceTokenizer(),
                heartbeat=model.heartbeat,
                create_output=engine.create_output,
            )
        )
        loop.call_soon(is_up.set)
        await workers[0].run()
        await consumer.aclose()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="piece-worker")
    thread.start()
    try:
        assert is_up.wait(scaled(30))
        yield
    finally:
        loop.call_soon_threadsafe(workers[0].drain)
        thread.join(scaled(30))
        loop.close()
