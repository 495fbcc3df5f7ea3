"""Streams survive if their worker is killed, frozen, hung, stopped, or declared lost while still running."""

from __future__ import annotations

import asyncio
import signal
import threading
from functools import partial
from typing import Any

import pytest
from llava_wire.redis.keys import PREFIX

from tests.echo import echo_text
from tests.faults.cluster import Cluster
from tests.faults.streams import Stream, Streams, story
from tests.waiting import async_wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


async def start(cluster: Cluster, streams: Streams, number: int, **fields: Any) -> list[Stream]:
    """Start streams across all controllers and wait until each has produced text."""
    started = streams.start_many(cluster.urls, number, **fields)
    await async_wait_until(
        lambda: all(stream.num_deltas >= 10 or stream.is_finished for stream in started), "all streams"
    )
    return started


async def test_streams_survive_when_their_worker_is_killed(cluster: Cluster, streams: Streams) -> None:
    started = await start(cluster, streams, 8, max_tokens=300)
    job_id = started[0].job_id
    num_reaps = cluster.num_reaps()
    cluster.worker_of(job_id).kill()
    await async_wait_until(lambda: cluster.job_field(job_id, "crashes") == "1", "the end of the lease")
    # Each controller calls reap once per second; the interval may include one extra call at each end.
    assert cluster.num_reaps() - num_reaps <= len(cluster.controllers) * (cluster.lease_s + 2)
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()


async def test_seed_logprobs_and_stop_strings_survive_when_their_worker_is_killed(
    cluster: Cluster, streams: Streams
) -> None:
    url = cluster.controllers[0].url

    def draw(**fields: Any) -> Stream:
        sampling = {"temperature": 0.8, "seed": 5, "logprobs": True, **fields}
        return streams.start(url, story("s"), max_tokens=300, **sampling)

    reference = draw()
    await async_wait_until(lambda: reference.is_finished, "the response without faults")
    assert reference.text != echo_text(story("s"), max_tokens=300)  # not the greedy output
    stop = reference.text[200:208]
    whole, stopped = draw(), draw(stop=[stop])
    await async_wait_until(lambda: min(whole.num_deltas, stopped.num_deltas) >= 10, "both streams")
    for victim in {cluster.worker_of(stream.job_id) for stream in (whole, stopped)}:
        victim.kill()
    await streams.wait_for_all()
    assert (whole.text, whole.finish_reason) == (reference.text, "length")
    assert whole.logprobs == reference.logprobs
    assert "".join(token["token"] for token in reference.logprobs) == reference.text
    assert (stopped.text, stopped.finish_reason) == (reference.text[: reference.text.index(stop)], "stop")
    assert "".join(token["token"] for token in stopped.logprobs) == stopped.text
    assert stopped.logprobs == reference.logprobs[: len(stopped.logprobs)]
    assert stopped.usage
    assert len(stopped.logprobs) < stopped.usage["completion_tokens"] < 300


async def test_a_frozen_worker_loses_its_streams_and_its_late_events_are_rejected(
    cluster: Cluster, streams: Streams
) -> None:
    started = await start(cluster, streams, 6, max_tokens=300)
    frozen = cluster.worker_of(started[0].job_id)
    frozen.send(signal.SIGSTOP)
    await async_wait_until(lambda: cluster.has_moved(started[0].job_id, frozen), "another worker")
    frozen.send(signal.SIGCONT)
    await async_wait_until(lambda: cluster.num_running(frozen) == 0, "the resumed worker without sequences")
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()
    assert frozen.status is None


async def test_a_worker_with_a_hung_engine_exits_and_its_streams_continue(
    cluster: Cluster, streams: Streams
) -> None:
    """Heartbeats are sent by another thread and continue, so only the lack of progress reveals the fault."""
    good = await start(cluster, streams, 6, max_tokens=400)
    bad = streams.start(cluster.controllers[0].url, f"{story('h')} [[hang at 20]]")
    await async_wait_until(lambda: bad.num_deltas >= 5, "the stream")
    hung = cluster.worker_of(bad.job_id)
    await async_wait_until(lambda: hung.status is not None, "the watchdog")
    assert hung.status == 70
    assert bad.task
    bad.task.cancel()  # otherwise, the request would hang the next worker at the same token
    await streams.wait_for_all()
    for stream in good:
        stream.assert_complete()
    for worker in cluster.workers:  # if one of them still holds the job, it would exit during the next test
        worker.kill()


async def test_a_rolling_restart_of_all_workers_fails_no_request(cluster: Cluster, streams: Streams) -> None:
    started = await start(cluster, streams, 8, max_tokens=400)
    num_crashes: set[str | None] = set()
    for worker in cluster.workers:
        worker.send(signal.SIGTERM)
        await async_wait_until(lambda: worker.status is not None, "the drain")  # noqa: B023
        assert worker.status == 0
        num_crashes |= {cluster.job_field(stream.job_id, "crashes") for stream in started}
        worker.start()
        await async_wait_until(lambda: worker.is_ready, "the restarted worker")  # noqa: B023
    assert num_crashes - {None} == {"0"}  # None: the job has expired
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()


async def test_events_of_a_live_worker_are_rejected_after_it_was_declared_lost(
    cluster: Cluster, streams: Streams
) -> None:
    started = await start(cluster, streams, 6, max_tokens=300)
    abandoned = cluster.worker_of(started[0].job_id)
    worker_id = cluster.job_field(started[0].job_id, "worker")
    assert worker_id
    is_refused = threading.Event()

    def keep_the_lease_expired() -> None:
        """Expire the lease so often that every call to ``reap`` finds it expired, although it is renewed."""
        while not is_refused.is_set():
            cluster.redis.zadd(f"{PREFIX}workers", {worker_id: 1})

    expiring = asyncio.create_task(asyncio.to_thread(keep_the_lease_expired))
    try:
        await async_wait_until(lambda: "no longer assigned to this worker" in abandoned.log, "a refusal")
    finally:
        is_refused.set()
        await expiring
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()
    assert abandoned.status is None


async def test_a_request_that_crashes_workers_fails_and_others_complete(
    cluster: Cluster, streams: Streams
) -> None:
    url = cluster.controllers[0].url
    good = [streams.start(url, story(index), max_tokens=200) for index in range(15)]
    bad = streams.start(url, f"{story('p')} [[crash at 30]]", max_tokens=200)
    num_crashes = 0
    while not (bad.is_finished and all(stream.is_finished for stream in good)):
        for worker in cluster.workers:
            if worker.status is not None:
                num_crashes += 1
                worker.start()
        await async_wait_until(
            lambda: (
                all(stream.is_finished for stream in streams.all)
                or any(worker.status is not None for worker in cluster.workers)
            ),
            "the end of all streams or of a worker",
            timeout_s=60,
        )
    for stream in good:
        stream.assert_complete()
    assert bad.error["code"] == "worker_crashed"
    assert num_crashes <= 3
    assert cluster.dead_letters() == [bad.job_id]


def have_all(started: list[Stream], num_deltas: int) -> bool:
    return all(stream.num_deltas >= num_deltas for stream in started)


async def test_workers_killed_together_twice_delay_no_new_request(cluster: Cluster, streams: Streams) -> None:
    """Crashes at the same time are no evidence against a request, so no request runs alone afterwards."""
    started = streams.start_many(cluster.urls, 12, max_tokens=300)
    for num_deltas in (10, 40):
        await async_wait_until(partial(have_all, started, num_deltas), "the streams")
        for worker in cluster.workers:
            worker.kill()
        for worker in cluster.workers:
            worker.start()
    await async_wait_until(partial(have_all, started, 60), "the streams to continue")
    assert not cluster.key_names("suspects:")
    late = streams.start(cluster.controllers[0].url, story("late"), max_tokens=5)
    await async_wait_until(lambda: late.is_finished, "the new request")
    assert not all(stream.is_finished for stream in started)
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()
