"""A worker that logs when each token is generated, for comparison with the token's arrival at a client.

    python -m bench.serving.clocked_worker QUEUE_URL LOG_FILE STEP_S CAPACITY

The log contains one line per step: the time in seconds (CLOCK_MONOTONIC, which all processes on a machine
share), followed by "request:position" for each token. The request number is taken from the prompt, for
example "request 17".
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
import time
from pathlib import Path

from llava_wire.redis.shards import Shard
from llava_wire.worker_side.sharded_consumer import ShardedConsumer
from llava_worker.engine import EngineInterface, EngineStats, Sequence, StepOutput
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from llava_worker.worker import Worker

_NUMBER = re.compile(rb"request (\d+)")


class ClockedEngine:
    """An engine that wraps another engine and logs its tokens."""

    def __init__(self, engine: EngineInterface, log: Path) -> None:
        self._engine = engine
        self._log = log.open("w", buffering=1)
        self._requests: dict[str, str] = {}  # request numbers, keyed by seq_id
        self._positions: dict[str, int] = {}
        self.max_sequences = engine.max_sequences
        self.context_length = engine.context_length

    @property
    def num_sequences(self) -> int:
        return self._engine.num_sequences

    def bind_thread(self) -> None:
        self._engine.bind_thread()

    def add(self, sequence: Sequence) -> None:
        prompt = bytes(token_id for token_id in sequence.prompt_ids if token_id < 256)
        found = _NUMBER.search(prompt)
        self._requests[sequence.seq_id] = found.group(1).decode() if found else "?"
        self._positions[sequence.seq_id] = len(sequence.output_ids)
        self._engine.add(sequence)

    def abort(self, seq_id: str) -> None:
        self._engine.abort(seq_id)

    def step(self) -> list[StepOutput]:
        outputs = self._engine.step()
        now = time.monotonic()
        entries = [self._log_entry(output) for output in outputs if output.token_id is not None]
        self._log.write(f"{now:.6f} {' '.join(entries)}\n")
        return outputs

    def idle(self) -> bool:
        return self._engine.idle()

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def _log_entry(self, output: StepOutput) -> str:
        self._positions[output.seq_id] += 1
        return f"{self._requests[output.seq_id]}:{self._positions[output.seq_id]}"


async def main(url: str, log: Path, step_s: str, capacity: str) -> None:
    flags = ["--model", "echo", "--echo-step-s", step_s, "--max-num-sequences", capacity]
    model = open_model(load_settings(flags))
    consumer = await ShardedConsumer.connect([Shard(url)], model.heartbeat)
    worker = Worker(
        consumer,
        ClockedEngine(model.engine, log),
        prompts=model.prompts,
        tokenizer=model.tokenizer,
        heartbeat=model.heartbeat,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.drain)
    try:
        await worker.run()
    finally:
        await consumer.aclose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
