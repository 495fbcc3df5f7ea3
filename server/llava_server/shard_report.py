"""A check that all workers have the same shards of the queue as this server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.redis.shards import Shard, shard_servers_digest

__all__ = ["shard_problems"]

_REMEDY = "Set LLAVA_QUEUE_SHARDS and LLAVA_QUEUE_URLS to the same values for all servers and workers."


def shard_problems(
    heartbeats: Sequence[Heartbeat], shards: Sequence[Shard]
) -> list[tuple[Literal["warning", "error"], str]]:
    """Return the level and the text of each difference between the shards of live workers and of this server.

    Such a worker does not see the jobs in some shards, or other servers do not see its shards. No text
    contains a URL. Workers of older releases do not report their servers. A worker that shares no shard with
    this server is not in ``heartbeats``.
    """
    problems: list[tuple[Literal["warning", "error"], str]] = []
    counts = Counter(beat.num_shards for beat in heartbeats)
    for number, num_workers in sorted(counts.items()):
        if number != len(shards):
            text = f"{num_workers} of {len(heartbeats)} workers have a queue of {number} shards"
            text = f"{text}, but this server has {len(shards)}, so some requests are not run. {_REMEDY}"
            problems.append(("error", text))
    expected = (None, shard_servers_digest(shards))
    others = [beat for beat in heartbeats if beat.shard_servers not in expected]
    num_others = sum(beat.num_shards == len(shards) for beat in others)
    if num_others:
        text = (
            f"{num_others} of {len(heartbeats)} workers have other URLs of the shards than this server, or "
            "have them in another order. Unless they are the same Redis servers in the same order, some "
            f"requests are not run. {_REMEDY}"
        )
        problems.append(("warning", text))
    return problems
