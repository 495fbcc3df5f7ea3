"""Batches of responses, completions and embeddings: each line has the same result as a separate request."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from tests.machine_speed import scaled
from tests.server.batch_requests import create_batch, input_file, read_results, upload, wait_for_end
from tests.server.conftest import OwnStack, Serve, Stack
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

RESPONSES, COMPLETIONS, EMBEDDINGS = "/v1/responses", "/v1/completions", "/v1/embeddings"
BODIES: dict[str, list[dict[str, Any]]] = {
    RESPONSES: [
        {"input": "say one two", "metadata": {"run": "7"}, "temperature": 0.5},
        {"input": "count 2", "include": ["message.output_text.logprobs"], "store": False},
    ],
    COMPLETIONS: [
        {"prompt": "say one two", "seed": 1},
        {"prompt": ["say a", "count 2"], "n": 2, "logprobs": 1, "echo": True, "seed": 1},
    ],
    EMBEDDINGS: [
        {"input": "yes"},
        {"input": [str(number) * number for number in range(1, 41)]},
        {"input": part(encoded(scene())), "encoding_format": "base64"},
    ],
}
# IDs and times differ between two requests, and batches run at the lowest priority.
VARYING = {"id", "created", "created_at", "service_tier", "priority"}


def line(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": MODEL, **body}}


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_ids(each) for name, each in value.items() if name not in VARYING}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("url", BODIES)
def test_each_line_has_the_same_result_as_a_separate_request(stack: Stack, url: str) -> None:
    lines = [line(str(number), url, **body) for number, body in enumerate(BODIES[url])]
    batch = wait_for_end(stack.http, create_batch(stack.http, input_file(*lines), url))
    assert (batch["endpoint"], batch["request_counts"]["completed"]) == (url, len(lines))
    results = read_results(stack.http, batch["output_file_id"])
    for result, request in zip(results, lines, strict=True):
        separate = stack.http.post(url, json=request["body"]).json()
        assert without_ids(result["response"]["body"]) == without_ids(separate)


def test_the_openai_client_creates_a_batch_of_responses(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        data = input_file(line("a", RESPONSES, input="say yes"))
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
        )
        wait_until(lambda: client.batches.retrieve(batch.id).status == "completed")
        output = client.batches.retrieve(batch.id).output_file_id
        assert output is not None
        [written] = [json.loads(each) for each in client.files.content(output).text.splitlines()]
        response = written["response"]["body"]
        assert client.responses.retrieve(response["id"]).output_text == "yes"
        continued = client.responses.create(model=MODEL, input="say two", previous_response_id=response["id"])
        assert continued.output_text == "two"


def test_a_line_continues_a_stored_response_and_a_chat_is_stored(own_stack: OwnStack) -> None:
    stack = own_stack()
    first = stack.http.post(RESPONSES, json={"model": MODEL, "input": "say one"}).json()["id"]
    data = input_file(line("a", RESPONSES, input="explain", previous_response_id=first))
    batch = wait_for_end(stack.http, create_batch(stack.http, data, RESPONSES))
    [result] = read_results(stack.http, batch["output_file_id"])
    assert (
        result["response"]["body"]["output"][0]["content"][0]["text"]
        == "user:say one|assistant:one|user:explain"
    )
    chat = {"messages": [{"role": "user", "content": "say yes"}], "store": True, "metadata": {"run": "7"}}
    data = input_file(line("a", "/v1/chat/completions", **chat))
    wait_for_end(stack.http, create_batch(stack.http, data))
    [stored] = stack.http.get("/v1/chat/completions").json()["data"]
    assert stored["metadata"] == {"run": "7"}


@pytest.mark.parametrize(
    ("url", "body", "status", "param"),
    [
        (RESPONSES, {"input": "say a", "stream": True}, 400, "stream"),
        (RESPONSES, {"input": "say a", "background": True}, 400, "background"),
        (RESPONSES, {"input": "say a", "temperature": 9}, 400, "temperature"),
        (RESPONSES, {"input": "say a", "previous_response_id": "resp_x"}, 404, "previous_response_id"),
        (RESPONSES, {"input": "refuse context_length_exceeded"}, 400, "input"),
        (RESPONSES, {"input": "break internal_error"}, 500, None),
        (COMPLETIONS, {"prompt": "say a", "stream": True}, 400, "stream"),
        (COMPLETIONS, {"prompt": "refuse context_length_exceeded"}, 400, "prompt"),
        (COMPLETIONS, {}, 400, "prompt"),
        (EMBEDDINGS, {"input": []}, 400, "input"),
        (EMBEDDINGS, {"input": "a", "dimensions": 7}, 400, "dimensions"),
    ],
)
def test_a_failed_line_has_the_error_of_its_endpoint(
    stack: Stack, url: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    data = input_file(line("a", url, **body), line("b", url, **BODIES[url][0]))
    batch = wait_for_end(stack.http, create_batch(stack.http, data, url))
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    [failed] = read_results(stack.http, batch["error_file_id"])
    error = failed["response"]["body"]["error"]
    assert (failed["response"]["status_code"], error["param"]) == (status, param)
    assert error.keys() >= {"message", "type", "code"}


def test_a_line_for_another_endpoint_fails_validation(stack: Stack) -> None:
    data = input_file(line("a", RESPONSES, input="say a"), line("b", EMBEDDINGS, input="a"))
    batch = create_batch(stack.http, data, RESPONSES)
    [issue] = batch["errors"]["data"]
    assert (batch["status"], issue["code"], issue["line"], issue["param"]) == (
        "failed",
        "invalid_value",
        2,
        "url",
    )
    assert (
        issue["message"] == "url must be '/v1/responses', the endpoint of the batch (got '/v1/embeddings')."
    )


@pytest.mark.parametrize("endpoint", ["/v1/messages", "/v1/moderations", ""])
def test_an_unsupported_endpoint_is_rejected(stack: Stack, endpoint: str) -> None:
    file_id = upload(stack.http, b"{}").json()["id"]
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
    response = stack.http.post("/v1/batches", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "endpoint")


@pytest.mark.parametrize("url", [RESPONSES, COMPLETIONS])
def test_another_server_that_takes_over_a_batch_runs_no_line_twice(
    own_stack: OwnStack, serve: Serve, url: str
) -> None:
    stack = own_stack()
    field = "input" if url == RESPONSES else "prompt"
    with httpx2.Client(base_url=stack.server.url, timeout=scaled(60)) as http:
        data = input_file(*(line(str(number), url, **{field: "hold"}) for number in range(3)))
        batch = create_batch(http, data, url)
        wait_until(lambda: len(stack.worker.assignments) == 3)
    other = serve(auth=False)
    stack.server.stop()
    stack.worker.release.set()
    with httpx2.Client(base_url=other.url, timeout=scaled(60)) as http:
        ended = wait_for_end(http, batch, timeout_s=scaled(60))
        assert ended["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert len(stack.worker.assignments) == 3
