"""/v1/embeddings: one job for each input, their vectors in the inputs' order, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from tests.server.api_key_cli import ApiKeyCli
from tests.server.conftest import OwnStack, Stack
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL

IMAGE = part(encoded(scene()))


def embed(stack: Stack, given: Any, **fields: Any) -> httpx2.Response:
    return stack.http.post("/v1/embeddings", json={"model": MODEL, "input": given, **fields})


@pytest.mark.parametrize(
    ("given", "vectors"),
    [
        ("aé", [[3, 0]]),
        (["a", "abc"], [[1, 0], [3, 0]]),
        ([7, 8, 9, 10], [[4, 0]]),
        ([[7], [8, 9]], [[1, 0], [2, 0]]),
        (IMAGE, [[0, 1]]),
        (["abcd", IMAGE, "ab"], [[4, 0], [0, 1], [2, 0]]),
        ([str(n) * (n % 7 + 1) for n in range(8)] * 12, [[n % 7 + 1, 0] for n in range(8)] * 12),
    ],
    ids=["text", "texts", "tokens", "lists of tokens", "picture", "texts and picture", "many"],
)
def test_every_input_has_its_vector_in_its_place(
    stack: Stack, given: Any, vectors: list[list[float]]
) -> None:
    response = embed(stack, given)
    body = response.json()
    assert [each["embedding"] for each in body["data"]] == vectors
    assert [each["index"] for each in body["data"]] == list(range(len(vectors)))
    assert {each["object"] for each in body["data"]} == {"embedding"}
    num_tokens = sum(map(sum, vectors))
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert (body["object"], body["model"]) == ("list", MODEL)
    assert "x-queue-position" in response.headers
    assert {(each.job.task, each.job.form) for each in stack.worker.assignments} == {("embed", "raw")}


def test_openais_client_reads_the_packed_form_that_it_asks_for(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model=MODEL, input=["abc", "a"], user="user-7")
    assert [each.embedding for each in answer.data] == [[3, 0], [1, 0]]
    assert isinstance(embed(stack, "abc", encoding_format="base64").json()["data"][0]["embedding"], str)


def test_the_same_numbers_come_in_both_forms(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        told = [
            client.embeddings.create(model=MODEL, input="abcde", encoding_format=form).data[0].embedding
            for form in ("float", openai.omit)
        ]
    assert told == [[5, 0], [5, 0]]


INVALID: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "input"),
    ([], {}, "input"),
    (["a", ""], {}, "input[1]"),
    ([-1], {}, "input[0]"),
    ([[1], []], {}, "input[1]"),
    ([1, "a"], {}, "input[1]"),
    (["a", 1], {}, "input[1]"),
    ([{"type": "text", "text": "a"}], {}, "input[0].type"),
    (["a"] * 2049, {}, "input"),
    ("x" * (1024 * 1024 + 1), {}, "input"),
    ([IMAGE] * 9, {}, "input"),
    (["a", part(b"no picture")], {}, "input[1].image_url.url"),
    ("a", {"encoding_format": "int8"}, "encoding_format"),
    ("a", {"dimensions": 8}, "dimensions"),
    ("a", {"truncate_prompt_tokens": 8}, "truncate_prompt_tokens"),
    ("a", {"add_special_tokens": False}, "add_special_tokens"),
    ("a", {"messages": []}, "messages"),
    ("a", {"priority": 1}, "priority"),
    ("a", {"user": "x" * 1025}, "user"),
    ("refuse context_length_exceeded", {}, "input"),
    (["a", "refuse context_length_exceeded"], {}, "input[1]"),
    ([*["a"] * 40, "refuse context_length_exceeded"], {}, "input[40]"),
]


def test_what_has_no_vector_is_refused_by_name(stack: Stack) -> None:
    for given, fields, param in INVALID:
        response = embed(stack, given, **fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_neutral_values_of_refused_fields_change_nothing(stack: Stack) -> None:
    assert embed(stack, "a", dimensions=None, add_special_tokens=True, priority=0).status_code == 200


def test_a_model_that_nobody_serves_is_not_found(stack: Stack) -> None:
    assert embed(stack, "a", model="none").json()["error"]["code"] == "model_not_found"


def test_embeddings_need_a_key_and_count_against_its_minute(own_stack: OwnStack, queue_url: str) -> None:
    stack = own_stack(auth=True)
    assert embed(stack, "a").status_code == 401
    stack.http.headers["Authorization"] = f"Bearer {ApiKeyCli(queue_url).create('--tokens-per-min', '100')}"
    assert embed(stack, "x" * 40).status_code == 200
    left = int(embed(stack, "x").headers["x-ratelimit-remaining-tokens"])
    assert 40 < left < 65
    refused = embed(stack, "x" * 270)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
