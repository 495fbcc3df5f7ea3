"""Routes other than chat against a real server: embeddings, tokens, stored responses and batches."""

from __future__ import annotations

import itertools
from pathlib import Path

import httpx2
import pytest
from llava_client import APIConnectionError, APIError, BadRequestError, Client, NotFoundError, batch_request

from tests.client.blocking_clients import AnyClient
from tests.client.conftest import MakeClient
from tests.client.scripted_server import PNG
from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL


@pytest.fixture
def served(make_client: MakeClient, stack: Stack) -> AnyClient:
    return make_client(stack.server.url)


def test_embeddings_are_in_the_order_of_the_texts(served: AnyClient) -> None:
    found = served.embed(["a", "abc"])
    assert (found.vectors, found.model) == (((1.0, 0.0), (3.0, 0.0)), MODEL)
    assert found.usage.prompt_tokens == 4
    assert served.embed("ab").vectors == ((2.0, 0.0),)


def test_images_can_be_embedded(served: AnyClient) -> None:
    assert served.embed(image=[PNG, PNG]).vectors == ((0.0, 1.0), (0.0, 1.0))


def test_embedding_no_input_or_both_kinds_is_a_type_error(served: AnyClient) -> None:
    with pytest.raises(TypeError, match="either text or image"):
        served.embed()
    with pytest.raises(TypeError, match="either text or image"):
        served.embed("a", image=PNG)


def test_a_text_is_tokenized_and_detokenized(served: AnyClient) -> None:
    tokens = served.tokenize("a red ball")
    assert tokens == list(b"a red ball")
    assert served.detokenize(tokens) == "a red ball"
    assert served.tokenize(messages=[{"role": "user", "content": "hi"}]) == list(b"hi")


def test_tokenizing_both_inputs_or_with_an_unknown_model_is_rejected(served: AnyClient) -> None:
    with pytest.raises(TypeError, match="either text or messages"):
        served.tokenize("a", messages=[])
    with pytest.raises(NotFoundError):
        served.detokenize([1], model="other")


def test_a_stored_response_can_be_retrieved_until_it_is_deleted(served: AnyClient) -> None:
    answer = served.chat("say one two", idempotency_key=f"stored-by-this-test-{served.kind}")
    assert served.retrieve_answer(answer.id).text == "one two"
    served.delete_answer(answer.id)
    with pytest.raises(NotFoundError):
        served.retrieve_answer(answer.id)


def test_batch_results_are_in_the_order_of_the_requests(served: AnyClient) -> None:
    requests = [batch_request(f"r{number}", f"say {number}") for number in range(5)]
    requests.insert(2, batch_request("hot", "say no", temperature=9))
    batch = served.submit_batch(iter(requests), metadata={"run": "7"})
    *_, ended = served.follow_batch(batch.id, poll_s=0.02)
    counts = ended.request_counts
    assert (ended.status, ended.metadata) == ("completed", {"run": "7"})
    assert (counts.total, counts.completed, counts.failed) == (6, 5, 1)
    *good, bad = served.batch_results(batch.id)
    assert [(result.custom_id, result.answer.text) for result in good] == [
        (f"r{n}", str(n)) for n in range(5)
    ]
    assert (bad.custom_id, bad.answer, type(bad.error)) == ("hot", None, BadRequestError)
    assert bad.error.param == "temperature"


def test_the_error_for_an_invalid_batch_file_contains_the_line_number(
    served: AnyClient, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text("\n{broken")
    with pytest.raises(APIError, match="Line 2: "):
        served.submit_batch(tmp_path / "in.jsonl")


def test_each_request_of_a_cancelled_batch_has_a_cancelled_error(served: AnyClient, stack: Stack) -> None:
    batch = served.submit_batch([batch_request("waits", "silent")])
    following = served.follow_batch(batch.id, poll_s=0.02)
    assert not next(following).is_over
    served.cancel_batch(batch.id)
    *_, ended = following
    [result] = served.batch_results(batch.id)
    assert (ended.status, result.error.code) == ("cancelled", "batch_cancelled")
    with pytest.raises(NotFoundError):
        served.retrieve_batch("batch_unknown")


def test_creating_a_batch_is_not_retried() -> None:
    """The file upload is retried, but the request that creates the batch is not."""
    paths: list[str] = []
    numbers = itertools.count()

    def respond(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.path)
        if request.url.path == "/v1/files" and next(numbers):
            return httpx2.Response(200, json={"id": "file-1"})
        raise httpx2.ReadError("reset")

    with httpx2.Client(transport=httpx2.MockTransport(respond)) as http:
        client = Client("http://peer", http_client=http, max_retries=3)
        with pytest.raises(APIConnectionError):
            client.submit_batch(b"{}")
    assert paths == ["/v1/files", "/v1/files", "/v1/batches"]
