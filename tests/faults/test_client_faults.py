"""Clients that disconnect, stop reading, or lose their controller."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx2
import pytest
from llava_client import AsyncClient
from llava_wire.redis.keys import PREFIX

from tests.echo import echo_text
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Stream, Streams, story
from tests.machine_speed import scaled
from tests.server.image_files import encoded, part, scene
from tests.waiting import async_wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


async def test_a_client_that_disconnects_frees_its_slot(cluster: Cluster, streams: Streams) -> None:
    stream = streams.start(cluster.controllers[0].url, story(1), max_tokens=4000)
    await async_wait_until(lambda: stream.num_deltas >= 5, "the stream")
    assert stream.task
    stream.task.cancel()
    await async_wait_until(
        lambda: cluster.job_field(stream.job_id, "state") == "cancelled", "the cancellation"
    )
    await async_wait_until(lambda: cluster.is_idle, "a free slot")
    remaining = {key for key in cluster.key_names() if stream.job_id in key}
    assert {key.rpartition("}:")[2].partition(":")[0] for key in remaining} <= {"job", "log"}


async def disconnect_after(num_steps: int, cluster: Cluster, stream: Stream) -> None:
    """Disconnect after ``num_steps`` iterations of the event loop, and check that no job remains."""
    for _ in range(num_steps):
        await asyncio.sleep(0)
    assert stream.task
    stream.task.cancel()
    await asyncio.gather(stream.task, return_exceptions=True)
    await async_wait_until(lambda: cluster.is_idle and not cluster.key_names("live:"), "an idle system")


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_a_client_that_disconnects_during_its_request_leaves_no_job(
    cluster: Cluster, streams: Streams, num_steps: int
) -> None:
    stream = streams.start(cluster.controllers[0].url, story(num_steps), max_tokens=4000)
    await disconnect_after(num_steps, cluster, stream)


@pytest.mark.parametrize("num_steps", [0, 50, 200, 500, 1000, 2000])
async def test_a_client_that_disconnects_while_its_image_is_decoded_leaves_no_job(
    cluster: Cluster, streams: Streams, num_steps: int
) -> None:
    content = [part(encoded(scene(1600, 1200))), {"type": "text", "text": story(num_steps)}]
    messages = [{"role": "user", "content": content}]
    stream = streams.start(cluster.controllers[0].url, "", max_tokens=4000, messages=messages)
    await disconnect_after(num_steps, cluster, stream)


async def test_a_request_with_an_image_completes_if_its_client_stays(
    cluster: Cluster, streams: Streams
) -> None:
    content = [part(encoded(scene())), {"type": "text", "text": story(0)}]
    messages = [{"role": "user", "content": content}]
    stream = streams.start(cluster.controllers[0].url, "", max_tokens=20, messages=messages)
    await async_wait_until(lambda: stream.is_finished, "the response")
    assert (stream.error, stream.has_done_event, stream.finish_reason) == (None, True, "length")


async def test_a_draining_controller_completes_its_streams(cluster: Cluster, streams: Streams) -> None:
    draining, other = cluster.controllers
    started = [streams.start(draining.url, story(index)) for index in range(8)]
    await async_wait_until(lambda: all(stream.num_deltas >= 5 for stream in started), "the streams")
    draining.send(signal.SIGTERM)
    rejected = streams.start(draining.url, story("late"))
    await async_wait_until(lambda: rejected.is_finished, "the rejection")
    assert rejected.status == 503
    assert rejected.error["code"] == "shutting_down"
    late = streams.start(other.url, story("late"))
    await streams.wait_for_all()
    for stream in (*started, late):
        stream.assert_complete()
    assert draining.wait() == 0


def assert_joined(first: Stream, rest: Stream) -> None:
    """Check that the two parts form the complete text, without a gap or an overlap."""
    rest.text = first.text + rest.text
    rest.assert_complete()


async def test_the_streams_of_a_killed_controller_resume_through_another_one(
    cluster: Cluster, streams: Streams
) -> None:
    killed, successor = cluster.controllers
    started = [streams.start(killed.url, story(index)) for index in range(8)]
    await async_wait_until(lambda: all(stream.num_deltas >= 20 for stream in started), "the streams")
    killed.kill()
    await async_wait_until(lambda: all(stream.is_finished for stream in started), "broken connections")
    for first, rest in [(stream, streams.resume(successor.url, stream)) for stream in started]:
        await async_wait_until(lambda: rest.is_finished, "the rest")  # noqa: B023
        assert_joined(first, rest)


async def test_a_background_response_survives_its_controller_and_then_its_worker() -> None:
    """The response takes longer than the grace period after which unread jobs are cancelled."""
    grace_s = scaled(1.0)
    slow = {"echo_step_s": 2 * grace_s / 64}  # a response has at least 64 tokens
    with running_cluster(
        num_controllers=2, num_workers=2, server={"orphan_grace_s": grace_s}, worker=slow
    ) as cluster:
        killed, successor = cluster.controllers
        request = {"model": "echo", "input": story("long"), "temperature": 0, "background": True}
        async with httpx2.AsyncClient(timeout=scaled(30)) as http:
            response_id = (await http.post(f"{killed.url}/v1/responses", json=request)).json()["id"]
            path = f"{successor.url}/v1/responses/{response_id}"
            await _response_once(http, path, "in_progress")
            killed.kill()
            cluster.worker_of(response_id.replace("resp_", "chatcmpl-")).kill()
            response = await _response_once(http, path, "completed", "failed", "cancelled")
    text = response["output"][0]["content"][0]["text"]
    assert response["status"] == "completed"
    assert response["usage"]["output_tokens"] >= 64
    assert echo_text(story("long"), max_tokens=200).startswith(text)


async def _response_once(http: httpx2.AsyncClient, path: str, *statuses: str) -> Any:
    """Wait until the stored response has one of these statuses, and return the response."""
    while (response := (await http.get(path)).json())["status"] not in statuses:
        await asyncio.sleep(0.05)
    return response


async def test_a_stream_of_a_killed_controller_is_cancelled_if_no_client_resumes_it(
    cluster: Cluster, streams: Streams
) -> None:
    stream = streams.start(cluster.controllers[0].url, story(1), max_tokens=4000)
    await async_wait_until(lambda: stream.num_deltas >= 5, "the stream")
    cluster.controllers[0].kill()
    await async_wait_until(
        lambda: cluster.job_field(stream.job_id, "state") == "orphaned", "the end of the grace period"
    )
    await async_wait_until(lambda: cluster.is_idle, "a free slot")


async def test_a_request_with_an_idempotency_key_resumes_after_a_broken_connection(
    cluster: Cluster, streams: Streams
) -> None:
    url = cluster.controllers[0].url
    stream = streams.start(url, story(2), headers={"Idempotency-Key": f"cut {story(2)}".replace(" ", "-")})
    await async_wait_until(lambda: stream.num_deltas >= 20, "the stream")
    assert stream.task
    stream.task.cancel()
    rest = streams.resume(url, stream)
    await async_wait_until(lambda: rest.is_finished, "the rest")
    assert_joined(stream, rest)


async def test_a_request_repeated_after_its_controller_was_killed_runs_once(
    cluster: Cluster, streams: Streams
) -> None:
    killed, successor = cluster.controllers
    headers = {"Idempotency-Key": "repeated-after-kill"}
    first = streams.start(killed.url, story(3), max_tokens=600, headers=headers)
    await async_wait_until(lambda: first.num_deltas >= 20, "the stream")
    killed.kill()
    again = streams.start(successor.url, story(3), max_tokens=600, headers=headers)
    await async_wait_until(lambda: again.is_finished, "the response")
    again.assert_complete()
    assert again.job_id == first.job_id
    assert cluster.redis.hget(f"{PREFIX}job:{first.job_id}", "crashes") == b"0"


async def test_a_request_sent_to_both_controllers_at_once_runs_once(
    cluster: Cluster, streams: Streams
) -> None:
    headers = {"Idempotency-Key": "sent-to-both"}
    both = [streams.start(each.url, story(4), headers=headers) for each in cluster.controllers]
    await streams.wait_for_all()
    for stream in both:
        stream.assert_complete()
    assert both[0].job_id == both[1].job_id


async def test_the_client_library_resumes_automatically_after_a_server_restart(
    cluster: Cluster,
) -> None:
    controller = cluster.controllers[0]
    async with AsyncClient(base_url=controller.url) as client:
        opening = await client.stream(
            story(5), model="echo", max_tokens=300, temperature=0, extra_body={"ignore_eos": True}
        )
        async with opening as stream:
            async for _ in stream:
                if len(stream.text) > 20:
                    break
            controller.kill()
            controller.start()
            completion = await stream.answer()
    assert completion.text == echo_text(story(5), max_tokens=300)
    assert completion.usage
    assert completion.usage.completion_tokens == 300


async def test_a_client_that_stops_reading_does_not_delay_other_streams(
    cluster: Cluster, streams: Streams
) -> None:
    url = cluster.controllers[0].url
    slow = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), limit=1)
    request = streams.http.build_request("POST", f"{url}/v1/chat/completions", json=body_of(4000))
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    slow[1].write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    fast = [streams.start(url, story(index)) for index in range(8)]
    await streams.wait_for_all()
    for stream in fast:
        stream.assert_complete()
    assert not cluster.is_idle  # the slow stream is still running
    slow[1].transport.abort()
    await async_wait_until(lambda: cluster.is_idle, "the slot of the slow client")


def body_of(max_tokens: int) -> dict[str, object]:
    return {
        "model": "echo",
        "messages": [{"role": "user", "content": story("slow")}],
        "stream": True,
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }
