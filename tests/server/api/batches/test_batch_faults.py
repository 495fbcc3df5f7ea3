"""Batches survive every error: a queue that refuses commands, and defects of a request or of the driver.

Keys of the wrong type cause the defects.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import redis
from llava_server.api.chat.job_builder import job_id_for_key
from llava_wire.redis.keys import PREFIX

from tests.server.batch_requests import (
    completions,
    create_batch,
    input_file,
    read_results,
    request_line,
    wait_for_end,
)
from tests.server.conftest import OwnStack, Stack, Valkey, running_stack
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

NUM_LINES = 500


def num_errors(stack: Stack, kind: str) -> float:
    return stack.server.metric("llava_redis_errors_total", kind=kind)


def num_crashes(stack: Stack, task: str) -> float:
    return stack.server.metric("llava_task_crashes_total", task=task)


def num_completed(http: httpx2.Client, batch: dict[str, object]) -> int:
    number = http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"]
    assert isinstance(number, int)
    return number


Command = Callable[[redis.Redis], object]
REFUSALS: dict[str, tuple[Command, Command]] = {
    "OOM": (
        lambda client: client.config_set("maxmemory", 1),
        lambda client: client.config_set("maxmemory", 0),
    ),
    "NOREPLICAS": (
        lambda client: client.config_set("min-replicas-to-write", 1),
        lambda client: client.config_set("min-replicas-to-write", 0),
    ),
    "READONLY": (
        lambda client: client.replicaof("127.0.0.1", 1),
        lambda client: client.replicaof("NO", "ONE"),
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_every_line_is_completed_although_the_queue_refuses_commands(valkey: Valkey, kind: str) -> None:
    refuse, accept = REFUSALS[kind]
    with (
        running_stack(f"unix://{valkey.socket}") as stack,
        redis.Redis(unix_socket_path=str(valkey.socket)) as client,
    ):
        lines = [request_line(str(number), f"say {number}") for number in range(NUM_LINES)]
        batch = create_batch(stack.http, input_file(*lines))
        wait_until(lambda: num_completed(stack.http, batch) >= 10, "the first results")
        refuse(client)
        wait_until(lambda: num_errors(stack, kind) >= 30, "errors in the driver")
        accept(client)
        batch = wait_for_end(stack.http, batch, timeout_s=90)
        assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
        assert completions(stack.http, batch) == {str(number): str(number) for number in range(NUM_LINES)}
        assert num_crashes(stack, "batch") == num_crashes(stack, "batch driver") == 0


def test_every_line_is_completed_although_the_queue_is_full(own_stack: OwnStack, queue_url: str) -> None:
    stack = own_stack(max_queued=2, capacity=2, batch_parallel=25)
    with ThreadPoolExecutor(4) as pool, redis.Redis.from_url(queue_url) as client:
        held = [pool.submit(stack.chat, "hold") for _ in range(2)]
        wait_until(lambda: len(stack.worker.assignments) == 2, "two running jobs")
        held += [pool.submit(stack.chat, "hold") for _ in range(2)]
        wait_until(lambda: client.zcard(f"{PREFIX}wait:{MODEL}") == 2, "the queue to be full")
        assert stack.chat("say yes").status_code == 503
        batch = create_batch(
            stack.http, input_file(*(request_line(str(number), "say yes") for number in range(30)))
        )
        wait_until(lambda: stack.http.get(f"/v1/batches/{batch['id']}").json()["status"] == "in_progress")
        stack.worker.release.set()
        batch = wait_for_end(stack.http, batch, timeout_s=90)
        assert [each.result().status_code for each in held] == [200] * 4
    assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}


def test_a_defect_of_one_request_ends_this_request_with_an_error(own_stack: OwnStack, queue_url: str) -> None:
    stack = own_stack(batch_parallel=1)
    batch = create_batch(
        stack.http,
        input_file(request_line("a", "hold"), request_line("b", "say b"), request_line("c", "say c")),
    )
    wait_until(lambda: stack.worker.assignments)
    [tenant] = {assignment.job.tenant for assignment in stack.worker.assignments}
    job_id = job_id_for_key(tenant, f"{batch['id']}:2")
    with redis.Redis.from_url(queue_url) as client:
        client.set(f"{PREFIX}job:{job_id}", "not a hash")
        stack.worker.release.set()
        batch = wait_for_end(stack.http, batch, timeout_s=60)
    assert completions(stack.http, batch) == {"a": "begun done", "c": "c"}
    [failed] = read_results(stack.http, batch["error_file_id"])
    assert (failed["custom_id"], failed["response"]["body"]["error"]["code"]) == ("b", "internal_error")
    assert "WRONGTYPE" not in json.dumps(failed)
    assert num_crashes(stack, "batch line") == 1


def test_a_defect_of_the_driver_releases_the_batch_and_restarts_it(
    own_stack: OwnStack, queue_url: str
) -> None:
    stack = own_stack()
    batch = create_batch(stack.http, input_file(request_line("a", "hold"), request_line("b", "hold")))
    wait_until(lambda: len(stack.worker.assignments) == 2)
    results = f"{PREFIX}results:{batch['id']}"
    with redis.Redis.from_url(queue_url) as client:
        client.set(results, "not a hash")
        stack.worker.release.set()
        wait_until(lambda: num_crashes(stack, "batch") >= 1, "the crash")
        wait_until(lambda: client.hget(f"{PREFIX}batch:{batch['id']}", "driver") == b"", "the release")
        client.delete(results)
        batch = wait_for_end(stack.http, batch, timeout_s=60)
    assert completions(stack.http, batch) == {"a": "begun done", "b": "begun done"}


def test_a_defect_while_claiming_a_batch_does_not_stop_running_batches(
    own_stack: OwnStack, queue_url: str
) -> None:
    stack = own_stack()
    batch = create_batch(stack.http, input_file(request_line("a", "hold")))
    wait_until(lambda: stack.worker.assignments)
    unfinished, aside = f"{PREFIX}batches", f"{PREFIX}aside"
    with redis.Redis.from_url(queue_url) as client:
        client.pipeline().rename(unfinished, aside).set(unfinished, "not a sorted set").execute()
        wait_until(lambda: num_crashes(stack, "batch driver") >= 1, "the crash")
        client.rename(aside, unfinished)
        stack.worker.release.set()
        assert completions(stack.http, wait_for_end(stack.http, batch, timeout_s=60)) == {"a": "begun done"}
    batch = create_batch(stack.http, input_file(request_line("b", "say b")))
    assert completions(stack.http, wait_for_end(stack.http, batch, timeout_s=60)) == {"b": "b"}
