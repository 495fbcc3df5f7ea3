"""Streams survive whatever happens to their workers: killed, frozen, hung, stopped, given up alive."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest
from llava_wire.redis.keys import PREFIX

from tests.e2e.worker_process import undisturbed
from tests.faults.cluster import Cluster
from tests.faults.processes import LEASE_S
from tests.faults.streams import Stream, Streams, question
from tests.waiting import async_wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

_REACTION_S = 1.0  # the beat of reaping, and what a busy machine adds


async def begin(cluster: Cluster, streams: Streams, number: int, **fields: object) -> list[Stream]:
    """So many streams, all in mid-sentence, over both controllers."""
    urls = [controller.url for controller in cluster.controllers]
    begun = [
        streams.ask(urls[index % len(urls)], question(index), **fields)  # type: ignore[arg-type]
        for index in range(number)
    ]
    await async_wait_until(
        lambda: all(stream.num_deltas >= 10 or stream.is_over for stream in begun), "all streams"
    )
    return begun


async def test_eight_streams_survive_the_kill_of_their_worker(cluster: Cluster, streams: Streams) -> None:
    begun = await begin(cluster, streams, 8)
    victim = cluster.holder(begun[0].job_id)
    victim.kill()
    await streams.all_over()
    for stream in begun:
        stream.assert_undisturbed()
        assert stream.longest_gap_s <= LEASE_S + 2 * _REACTION_S


async def test_seed_log_probabilities_and_stop_strings_survive_the_kill_of_a_worker(
    cluster: Cluster, streams: Streams
) -> None:
    url = cluster.controllers[0].url

    def ask(**fields: object) -> Stream:
        drawn = {"temperature": 0.8, "seed": 5, "logprobs": True, **fields}
        return streams.ask(url, question("s"), max_tokens=300, **drawn)  # type: ignore[arg-type]

    calm = ask()
    await async_wait_until(lambda: calm.is_over, "the undisturbed answer")
    assert calm.text != undisturbed(question("s"), max_tokens=300)  # it is drawn
    stop = calm.text[200:208]
    whole, stopped = ask(), ask(stop=[stop])
    await async_wait_until(lambda: min(whole.num_deltas, stopped.num_deltas) >= 10, "both streams")
    for victim in {cluster.holder(stream.job_id) for stream in (whole, stopped)}:
        victim.kill()
    await streams.all_over()
    assert (whole.text, whole.finish_reason) == (calm.text, "length")
    assert whole.num_logprobs == calm.num_logprobs == 300
    assert (stopped.text, stopped.finish_reason) == (calm.text[: calm.text.index(stop)], "stop")
    assert stopped.usage
    assert stopped.num_logprobs == stopped.usage["completion_tokens"] < 300


async def test_a_frozen_worker_loses_its_streams_and_is_not_heard_when_it_thaws(
    cluster: Cluster, streams: Streams
) -> None:
    begun = await begin(cluster, streams, 6, max_tokens=300)
    frozen = cluster.holder(begun[0].job_id)
    frozen.send(signal.SIGSTOP)
    await async_wait_until(lambda: cluster.is_held_by_another(begun[0].job_id, than=frozen), "another worker")
    frozen.send(signal.SIGCONT)
    await async_wait_until(lambda: cluster.num_running(frozen) == 0, "the thawed worker's empty hands")
    await streams.all_over()
    for stream in begun:
        stream.assert_undisturbed()
    assert frozen.status is None


async def test_a_worker_whose_engine_hangs_ends_and_its_streams_go_on(
    cluster: Cluster, streams: Streams
) -> None:
    """The thread that beats lives on; only progress tells."""
    good = await begin(cluster, streams, 6, max_tokens=400)
    bad = streams.ask(cluster.controllers[0].url, f"{question('h')} [[hang at 20]]")
    await async_wait_until(lambda: bad.num_deltas >= 5, "the stream")
    hung = cluster.holder(bad.job_id)
    await async_wait_until(lambda: hung.status is not None, "the watchdog")
    assert hung.status == 70
    assert bad.task
    bad.task.cancel()  # else it hangs the next worker at the same token
    await streams.all_over()
    for stream in good:
        stream.assert_undisturbed()
    for worker in cluster.workers:  # one may hold it already, and end in the middle of the next test
        worker.kill()


async def test_a_rolling_restart_of_all_workers_fails_no_request(cluster: Cluster, streams: Streams) -> None:
    begun = await begin(cluster, streams, 8, max_tokens=400)
    num_crashes: set[object] = set()
    for worker in cluster.workers:
        worker.send(signal.SIGTERM)
        await async_wait_until(lambda: worker.status is not None, "the drain")  # noqa: B023
        assert worker.status == 0
        num_crashes |= {cluster.redis.hget(f"{PREFIX}job:{each.job_id}", "crashes") for each in begun}
        worker.start()
        await async_wait_until(lambda: worker.is_ready, "the worker's next life")  # noqa: B023
    assert num_crashes - {None} == {b"0"}  # None: answered by then
    await streams.all_over()
    for stream in begun:
        stream.assert_undisturbed()


async def test_a_worker_given_up_alive_is_heard_no_more(cluster: Cluster, streams: Streams) -> None:
    begun = await begin(cluster, streams, 6, max_tokens=300)
    given_up = cluster.holder(begun[0].job_id)
    worker_id = cluster.redis.hget(f"{PREFIX}job:{begun[0].job_id}", "worker")
    assert worker_id
    is_refused = threading.Event()

    def let_the_lease_be_over() -> None:
        """More often by far than each step renews it, so that whoever looks finds it over."""
        while not is_refused.is_set():
            cluster.redis.zadd(f"{PREFIX}workers", {worker_id.decode(): 1})

    giving_up = asyncio.create_task(asyncio.to_thread(let_the_lease_be_over))
    try:
        await async_wait_until(lambda: "no longer ours" in given_up.log, "a refusal")
    finally:
        is_refused.set()
        await giving_up
    await streams.all_over()
    for stream in begun:
        stream.assert_undisturbed()
    assert given_up.status is None


async def test_one_poisonous_request_dies_alone_and_harms_nobody(cluster: Cluster, streams: Streams) -> None:
    url = cluster.controllers[0].url
    good = [streams.ask(url, question(index), max_tokens=400) for index in range(15)]
    bad = streams.ask(url, f"{question('p')} [[crash at 30]]", max_tokens=400)
    deaths = 0
    while not (bad.is_over and all(stream.is_over for stream in good)):
        for worker in cluster.workers:
            if worker.status is not None:
                deaths += 1
                worker.start()
        await async_wait_until(
            lambda: (
                all(stream.is_over for stream in streams.all)
                or any(worker.status is not None for worker in cluster.workers)
            ),
            "an end or a death",
            timeout_s=60,
        )
    for stream in good:
        stream.assert_undisturbed()
    assert bad.error["code"] == "worker_crashed"
    assert deaths <= 3
    letters = [fields for _, fields in cluster.redis.xrange(f"{PREFIX}dlq")]
    assert [fields[b"job"].decode() for fields in letters] == [bad.job_id]
