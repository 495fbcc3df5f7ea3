"""/v1/batches: each line runs once at the lowest priority, with its result in the output or error file."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import redis
from llava_wire.redis.keys import PREFIX

from tests.server.batch_requests import (
    KEYS,
    completions,
    create_batch,
    input_file,
    read_results,
    request_line,
    tenant_clients,
    upload,
    wait_for_end,
)
from tests.server.conftest import OwnStack, Stack, text_of
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

REQUEST = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def codes(batch: dict[str, Any]) -> list[tuple[str, int | None]]:
    return [(issue["code"], issue["line"]) for issue in batch["errors"]["data"]]


def test_the_openai_client_runs_a_batch_from_file_to_file(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        data = input_file(*(request_line(f"r{number}", f"say number {number}") for number in range(20)))
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"run": "7"},
        )
        assert batch.status in ("validating", "in_progress")
        wait_until(lambda: client.batches.retrieve(batch.id).status == "completed")
        batch = client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (20, 20, 0)
        assert batch.metadata == {"run": "7"}
        assert batch.error_file_id is None
        assert batch.output_file_id is not None
        written = [json.loads(each) for each in client.files.content(batch.output_file_id).text.splitlines()]
        assert [each["custom_id"] for each in written] == [f"r{number}" for number in range(20)]
        body = written[7]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == "number 7"
        assert (body["usage"]["completion_tokens"], body["service_tier"]) == (3, "flex")
        assert written[7]["response"]["status_code"] == 200
        assert written[7]["error"] is None
        assert batch.id in [each.id for each in client.batches.list(limit=3)]
        assert {each.purpose for each in client.files.list()} == {"batch", "batch_output"}


def test_failed_lines_are_in_the_error_file_and_the_others_in_the_output_file(stack: Stack) -> None:
    data = input_file(
        request_line("good", "say yes"),
        request_line("hot", "say yes", temperature=9),
        request_line("streams", "say yes", stream=True),
        request_line("stranger", "say yes", model="other"),
        request_line("breaks", "break internal_error"),
    )
    batch = wait_for_end(stack.http, create_batch(stack.http, data))
    assert batch["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
    assert completions(stack.http, batch) == {"good": "yes"}
    errors = {each["custom_id"]: each for each in read_results(stack.http, batch["error_file_id"])}
    statuses = {name: each["response"]["status_code"] for name, each in errors.items()}
    assert statuses == {"hot": 400, "streams": 400, "stranger": 404, "breaks": 500}
    assert errors["hot"]["response"]["body"]["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    ("data", "issues"),
    [
        (b"", [("empty_file", None)]),
        (b"\n\n", [("empty_file", None)]),
        (input_file(request_line("a", "x")) + b"\n{broken", [("invalid_json_line", 2)]),
        (
            input_file(request_line("a", "x"), request_line("b", "x"), request_line("a", "x")),
            [("duplicate_custom_id", 3)],
        ),
        (input_file({**request_line("a", "x"), "url": "/v1/embeddings"}), [("invalid_value", 1)]),
        (input_file({**request_line("a", "x"), "method": "GET"}), [("invalid_value", 1)]),
        (input_file({"custom_id": "a"}), [("missing_required_parameter", 1)]),
        (input_file({**request_line("a", "x"), "custom_id": 7}), [("invalid_type", 1)]),
        (b"\xff\xfe\n" + input_file(request_line("a", "x")), [("invalid_json_line", 1)]),
    ],
)
def test_an_invalid_line_fails_the_batch_with_its_number_before_anything_runs(
    stack: Stack, data: bytes, issues: list[tuple[str, int | None]]
) -> None:
    batch = create_batch(stack.http, data)
    assert (batch["status"], codes(batch)) == ("failed", issues)
    assert batch["failed_at"] is not None
    assert not stack.worker.assignments


def test_too_many_lines_fail_the_batch(own_stack: OwnStack) -> None:
    stack = own_stack(max_batch_lines=2)
    batch = create_batch(
        stack.http, input_file(*(request_line(str(number), "say yes") for number in range(3)))
    )
    assert codes(batch) == [("too_many_tasks", None)]


@pytest.mark.parametrize(
    ("field", "value"), [("endpoint", "/v1/moderations"), ("completion_window", "1h"), ("input_file_id", "")]
)
def test_unsupported_values_are_rejected_with_the_field(stack: Stack, field: str, value: str) -> None:
    response = stack.http.post("/v1/batches", json={**REQUEST, field: value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


def test_an_unknown_file_is_a_404(stack: Stack) -> None:
    assert stack.http.post("/v1/batches", json=REQUEST).status_code == 404


def test_a_cancelled_batch_has_its_results_and_an_error_for_each_other_line(stack: Stack) -> None:
    batch = create_batch(
        stack.http,
        input_file(
            request_line("quick", "say yes"), request_line("slow", "hold"), request_line("never", "go-on")
        ),
    )
    wait_until(lambda: stack.http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"])
    cancelled = stack.http.post(f"/v1/batches/{batch['id']}/cancel").json()
    assert cancelled["status"] in ("cancelling", "cancelled")
    batch = wait_for_end(stack.http, batch)
    assert (batch["status"], completions(stack.http, batch)) == ("cancelled", {"quick": "yes"})
    errors = read_results(stack.http, batch["error_file_id"])
    assert {(each["custom_id"], each["error"]["code"]) for each in errors} == {
        ("slow", "batch_cancelled"),
        ("never", "batch_cancelled"),
    }
    wait_until(lambda: stack.worker.refused)  # the batch's jobs are cancelled


def test_a_batch_that_has_ended_cannot_be_cancelled(stack: Stack) -> None:
    batch = wait_for_end(stack.http, create_batch(stack.http, input_file(request_line("a", "say yes"))))
    response = stack.http.post(f"/v1/batches/{batch['id']}/cancel")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "batch_has_ended")


def test_a_batch_expires_at_the_end_of_its_window(stack: Stack) -> None:
    batch = create_batch(
        stack.http, input_file(request_line("quick", "say yes"), request_line("slow", "hold"))
    )
    wait_until(lambda: stack.http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"])
    url = stack.server.services.settings.redis_url.get_secret_value()
    with redis.Redis.from_url(url) as client:  # simulates the end of the 24-hour window
        client.hset(f"{PREFIX}batch:{batch['id']}", "ends", 1)
    batch = wait_for_end(stack.http, batch)
    assert (batch["status"], completions(stack.http, batch)) == ("expired", {"quick": "yes"})
    (error,) = read_results(stack.http, batch["error_file_id"])
    assert (error["custom_id"], error["response"], error["error"]["code"]) == ("slow", None, "batch_expired")


def test_a_batch_is_not_visible_to_other_keys(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=",".join(KEYS))
    with tenant_clients(stack) as (alice, bob):
        batch = wait_for_end(alice, create_batch(alice, input_file(request_line("a", "say yes"))))
        path = f"/v1/batches/{batch['id']}"
        assert bob.get(path).json()["error"]["code"] == "batch_not_found"
        assert bob.post(f"{path}/cancel").status_code == 404
        assert bob.get(f"/v1/files/{batch['output_file_id']}/content").status_code == 404
        assert bob.get("/v1/batches").json()["data"] == []
        body = {**REQUEST, "input_file_id": batch["input_file_id"]}
        assert bob.post("/v1/batches", json=body).status_code == 404


def test_the_list_is_paged_without_gaps(own_stack: OwnStack) -> None:
    stack = own_stack()
    created = [create_batch(stack.http, b"")["id"] for _ in range(5)]
    first = stack.http.get("/v1/batches?limit=3").json()
    rest = stack.http.get(f"/v1/batches?limit=3&after={first['last_id']}").json()
    listed = [each["id"] for page in (first, rest) for each in page["data"]]
    assert sorted(listed) == sorted(created)
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert stack.http.get("/v1/batches?limit=0").status_code == 400


def test_unfinished_batches_of_a_key_are_limited(own_stack: OwnStack) -> None:
    stack = own_stack(max_batches=1)
    batch = create_batch(stack.http, input_file(request_line("slow", "hold")))
    file_id = upload(stack.http, input_file(request_line("a", "say yes"))).json()["id"]
    body = {**REQUEST, "input_file_id": file_id}
    assert stack.http.post("/v1/batches", json=body).status_code == 429
    stack.worker.release.set()
    wait_for_end(stack.http, batch)
    assert stack.http.post("/v1/batches", json=body).status_code == 200


def test_a_batch_delays_an_interactive_request_by_one_job_at_most(own_stack: OwnStack) -> None:
    stack = own_stack(capacity=1)
    batch = create_batch(
        stack.http,
        input_file(request_line("0", "hold"), *(request_line(str(n), "say yes") for n in range(1, 30))),
    )
    wait_until(lambda: stack.worker.assignments)
    with ThreadPoolExecutor(1) as pool:
        wait_until(lambda: num_waiting(stack) == 7)  # the driver's limit minus the running job
        pending = pool.submit(stack.chat, "say interactive")
        wait_until(lambda: num_waiting(stack) == 8)
        stack.worker.release.set()
        assert text_of(pending.result()) == "interactive"
    texts = [str(each.job.messages[-1].parts[0]) for each in stack.worker.assignments]
    assert texts.index("say interactive") == 1
    assert wait_for_end(stack.http, batch)["request_counts"]["completed"] == 30


def num_waiting(stack: Stack) -> float:
    return stack.server.metric("llava_num_requests_waiting", model_name=MODEL)
