"""``llava-serve dlq``: list and replay dead letters, which are requests that repeatedly crashed workers."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

import msgspec
from llava_wire.controller_side.producer import JobProducer
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import QueueUnavailable, WireError
from llava_wire.operator.inspector import DeadLetter
from llava_wire.operator.sharded_inspector import ShardedInspector
from llava_wire.redis.shards import Shard
from rich.console import Console

from llava_server.periodic import run_periodically
from llava_server.supervised_tasks import SupervisedTasks

__all__ = ["replay", "show"]

_EXIT_FAILED = 1


async def show(inspector: ShardedInspector, console: Console) -> None:
    """Print all dead letters, one per line."""
    letters = await inspector.dead_letters()
    if not letters:
        console.print("No dead letters.")
    for letter in letters:
        created = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(letter.created_at))
        note = "" if letter.job else "; the request was too large to store"
        console.print(
            f"{created}  {letter.job_id}  model={letter.model} tenant={letter.tenant}: "
            f"{letter.num_crashes} crashes, the last at token {letter.num_tokens}: {letter.reason}{note}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


async def replay(inspector: ShardedInspector, shards: Sequence[Shard], job_id: str) -> int:
    """Replay the request in a dead letter and print the output. Return the exit status."""
    letters = [letter for letter in await inspector.dead_letters() if letter.job_id == job_id]
    reason = await _reason_against_replay(inspector, letters)
    request = letters[0].job if letters else None
    if reason or request is None:
        sys.stderr.write(f"llava-serve: {job_id}: {reason}\n")
        return _EXIT_FAILED
    job = msgspec.structs.replace(request, job_id=f"chatcmpl-{secrets.token_hex(16)}")
    queue = await ShardedProducer.connect(shards)
    producer = queue.shard(job.job_id)
    try:
        await producer.submit(job, await inspector.stored_images(job))
        return await _print_output(producer, job.job_id)
    except WireError as error:
        sys.stderr.write(f"llava-serve: {error}\n")
        return _EXIT_FAILED
    finally:
        await queue.aclose()


async def _reason_against_replay(inspector: ShardedInspector, letters: list[DeadLetter]) -> str | None:
    if not letters:
        return "No dead letter has this job ID. List all dead letters with 'llava-serve dlq show'."
    job = letters[0].job
    if job is None:
        return "The request was too large to store. Obtain it from the client that sent it."
    if len(await inspector.stored_images(job)) < len({image.digest for image in job.images}):
        return "The images of the request have expired. Obtain the request from the client that sent it."
    return None


async def _print_output(producer: JobProducer, job_id: str) -> int:
    async with aclosing(SupervisedTasks()) as tasks:
        tasks.start("reap", partial(run_periodically, 1.0, partial(_reap, producer)))
        return await _follow(producer, job_id)


async def _reap(producer: JobProducer) -> None:
    """Renew the lease of this process, which acts as the controller of the replayed job."""
    try:
        await producer.reap()
    except QueueUnavailable as error:
        sys.stderr.write(f"llava-serve: waiting: {error}\n")


async def _follow(producer: JobProducer, job_id: str) -> int:
    async for batch in producer.follow():
        for _, event in (item for item in batch if item[0] == job_id):
            sys.stdout.write(event.text)
            sys.stdout.flush()
            if event.final is None:
                continue
            sys.stdout.write("\n")
            if event.final.error is None:
                return 0
            sys.stderr.write(f"llava-serve: {event.final.error.message}\n")
            return _EXIT_FAILED
    return _EXIT_FAILED
