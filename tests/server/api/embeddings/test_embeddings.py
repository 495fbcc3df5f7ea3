"""/v1/embeddings: one job per input, results in input order, and OpenAI's response format."""

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
    ids=["text", "texts", "tokens", "lists of tokens", "image", "texts and image", "many"],
)
def test_embeddings_are_in_input_order(stack: Stack, given: Any, vectors: list[list[float]]) -> None:
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


def test_openais_client_decodes_base64_embeddings(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        embeddings = client.embeddings.create(model=MODEL, input=["abc", "a"], user="user-7")
    assert [each.embedding for each in embeddings.data] == [[3, 0], [1, 0]]
    assert isinstance(embed(stack, "abc", encoding_format="base64").json()["data"][0]["embedding"], str)


def test_both_encoding_formats_have_the_same_numbers(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        vectors = [
            client.embeddings.create(model=MODEL, input="abcde", encoding_format=form).data[0].embedding
            for form in ("float", openai.omit)
        ]
    assert vectors == [[5, 0], [5, 0]]


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
    (["a", part(b"not an image")], {}, "input[1].image_url.url"),
    ("a", {"encoding_format": "int8"}, "encoding_format"),
    ("a", {"dimensions": 8}, "dimensions"),
    ("a", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ("a", {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ("a", {"cache_salt": ""}, "cache_salt"),
    ("a", {"normalize": 0}, "normalize"),
    ("a", {"add_special_tokens": False}, "add_special_tokens"),
    ("a", {"messages": []}, "messages"),
    ("a", {"priority": 1}, "priority"),
    ("a", {"user": "x" * 1025}, "user"),
    ("refuse context_length_exceeded", {}, "input"),
    (["a", "refuse context_length_exceeded"], {}, "input[1]"),
    ([*["a"] * 40, "refuse context_length_exceeded"], {}, "input[40]"),
]


def test_an_invalid_request_is_a_400_that_names_the_field(stack: Stack) -> None:
    for given, fields, param in INVALID:
        response = embed(stack, given, **fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_neutral_values_of_unsupported_fields_have_no_effect(stack: Stack) -> None:
    assert embed(stack, "a", dimensions=None, add_special_tokens=True, priority=0).status_code == 200


def test_a_model_that_no_worker_serves_is_not_found(stack: Stack) -> None:
    assert embed(stack, "a", model="none").json()["error"]["code"] == "model_not_found"


def test_embeddings_need_an_api_key_and_count_towards_its_token_limit(
    own_stack: OwnStack, queue_url: str
) -> None:
    stack = own_stack(auth=True)
    assert embed(stack, "a").status_code == 401
    stack.http.headers["Authorization"] = f"Bearer {ApiKeyCli(queue_url).create('--tokens-per-min', '100')}"
    assert embed(stack, "x" * 40).status_code == 200
    remaining = int(embed(stack, "x").headers["x-ratelimit-remaining-tokens"])
    assert 40 < remaining < 65
    rejected = embed(stack, "x" * 270)
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "rate_limit_exceeded")
