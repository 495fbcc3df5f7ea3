"""Structured output over HTTP: the bundled model adheres to schemas, even if its worker is killed."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import jsonschema
import pytest
from llava_client import Client
from tiny.drawing import draw
from tiny.scenes import sample_scene

from tests.e2e.conftest import TINY
from tests.machine_speed import scaled
from tests.processes import StartWorker, WorkerProcess, running_controller, worker_factory
from tests.wire.redis_server import running_redis

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SETTINGS = {**TINY, "lease_s": 1, "log_level": "debug"}
OBJECT = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue", "yellow"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": OBJECT, "minItems": 10, "maxItems": 10}
UNSUPPORTED = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3, "uniqueItems": True}


def as_format(schema: dict[str, Any], *, is_strict: bool = False) -> dict[str, Any]:
    form = {"name": "scene", "schema": schema, "strict": is_strict}
    return {"type": "json_schema", "json_schema": form}


@dataclass
class Server:
    """A controller and all workers that have been started. Only the newest worker is running."""

    url: str
    start: StartWorker
    workers: list[WorkerProcess] = field(default_factory=list)

    def start_worker(self) -> None:
        self.workers.append(self.start(**SETTINGS))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("structured")
    with running_redis() as url, worker_factory(url, folder) as start:
        first = start(**SETTINGS)
        with running_controller(url, folder, lease_s=1) as site:
            yield Server(site.url, start, [first])


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(base_url=server.url) as client:
        yield client


def test_responses_match_the_requested_format(client: Client) -> None:
    image = draw(sample_scene("structured", 0))
    for seed in range(3):
        response = client.chat(
            "Describe it.",
            image=image,
            response_format=as_format(OBJECT),
            temperature=1.0,
            seed=seed,
            max_tokens=300,
        )
        jsonschema.validate(json.loads(response.text), OBJECT)
        assert response.finish_reason == "stop"
    assert client.chat("Blue?", guided_choice=["perhaps", "never"]).text in ("perhaps", "never")
    assert re.fullmatch(r"[xyz]{4}", client.chat("Blue?", guided_regex="[xyz]{4}").text)


@pytest.mark.parametrize("is_streaming", [False, True])
def test_an_unsupported_schema_is_rejected_with_400_and_the_reason(
    server: Server, is_streaming: bool
) -> None:
    body = {
        "model": "tiny-llava",
        "messages": [{"role": "user", "content": "Hi?"}],
        "response_format": as_format(UNSUPPORTED, is_strict=True),
        "stream": is_streaming,
    }
    response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=scaled(60))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "response_format.json_schema.schema")
    assert "uniqueItems" in error["message"]


ARGUMENTS = {
    "type": "object",
    "properties": {"tags": UNSUPPORTED},
    "required": ["tags"],
    "additionalProperties": False,
}
FUNCTION = {"name": "f", "parameters": ARGUMENTS, "strict": True}
INPUT = {"model": "tiny-llava", "max_output_tokens": 400, "input": "Hi?"}
MESSAGE = {"model": "tiny-llava", "max_tokens": 400, "messages": [{"role": "user", "content": "Hi?"}]}
SCHEMA_FORMAT = {"type": "json_schema", "schema": UNSUPPORTED}
# (path, body with an unsupported keyword in a strict schema, the field that contains it)
REJECTED: list[tuple[str, dict[str, Any], str]] = [
    (
        "/v1/chat/completions",
        {**MESSAGE, "tools": [{"type": "function", "function": FUNCTION}]},
        "tools[0].function.parameters",
    ),
    ("/v1/responses", {**INPUT, "tools": [{"type": "function", **FUNCTION}]}, "tools[0].parameters"),
    (
        "/v1/responses",
        {**INPUT, "text": {"format": {**SCHEMA_FORMAT, "name": "x", "strict": True}}},
        "text.format.schema",
    ),
    (
        "/v1/messages",
        {**MESSAGE, "tools": [{"name": "f", "input_schema": ARGUMENTS, "strict": True}]},
        "tools[0].input_schema",
    ),
    ("/v1/messages", {**MESSAGE, "output_format": SCHEMA_FORMAT}, "output_config.format.schema"),
    ("/v1/chat/completions", {**MESSAGE, "guided_json": UNSUPPORTED}, "guided_json"),
    ("/v1/chat/completions", {**MESSAGE, "ebnf": "root ::= ("}, "ebnf"),
]


def test_an_error_names_the_field_in_every_api(server: Server) -> None:
    for path, body, param in REJECTED:
        response = httpx2.post(f"{server.url}{path}", json=body, timeout=scaled(60))
        error = response.json()["error"]
        assert response.status_code == 400, (path, param)
        assert error.get("param", param) == param
        assert "uniqueItems" in error["message"] or "line 1, column 10" in error["message"]
        if "tools" in param:
            assert "function 'f'" in error["message"] and "/properties/tags" in error["message"]


def test_unsupported_keywords_of_a_tool_that_is_not_strict_are_ignored(server: Server) -> None:
    tool = {"type": "function", "function": {**FUNCTION, "strict": None}}
    body = {**MESSAGE, "tools": [tool], "tool_choice": "required", "temperature": 0}
    response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=scaled(60))
    assert response.status_code == 200, response.text
    for call in response.json()["choices"][0]["message"]["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments["tags"]) <= {"a", "b"} and len(arguments["tags"]) <= 3


def test_the_model_does_not_invent_properties(server: Server) -> None:
    """Clients often omit additionalProperties."""
    number = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    expected: list[tuple[dict[str, Any], set[str]]] = [
        (number, {"n"}),
        ({"type": "object", "properties": {}}, set()),
    ]
    for parameters, names in expected:
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        body = {**MESSAGE, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
        response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=scaled(60))
        [choice] = response.json()["choices"]
        [call] = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert set(json.loads(call["function"]["arguments"])) == names


def test_the_output_matches_a_grammar_under_each_of_its_names(server: Server) -> None:
    grammar = 'root ::= "<" [xyz]{4} ">"'
    names = {"grammar": grammar, "ebnf": grammar, "guided_grammar": grammar, "regex": "<[xyz]{4}>"}
    for name, value in names.items():
        body = {**MESSAGE, name: value}
        response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=scaled(60))
        assert re.fullmatch("<[xyz]{4}>", response.json()["choices"][0]["message"]["content"]), name


def test_json_is_resumed_in_mid_object_when_its_worker_is_killed(server: Server, client: Client) -> None:
    request: dict[str, Any] = {
        "image": draw(sample_scene("structured", 1)),
        "response_format": as_format(LIST),
        "temperature": 1.0,
        "seed": 5,
        "max_tokens": 900,
    }
    uninterrupted = client.chat("Describe it.", **request).text
    jsonschema.validate(json.loads(uninterrupted), LIST)
    killed = server.workers[-1]
    with client.stream("Describe it.", **request) as stream:
        for number, _ in enumerate(stream):
            if number == 5:
                killed.send(signal.SIGKILL)
                server.start_worker()
    assert (stream.text, stream.finish_reason) == (uninterrupted, "stop")
    assert re.search(r"starting at token [1-9]", server.workers[-1].log)


TOOL = {
    "type": "function",
    "function": {
        "name": "record_counts",
        "parameters": {
            "type": "object",
            "properties": {"counts": {**LIST, "maxItems": 6, "minItems": 6, "uniqueItems": True}},
            "required": ["counts"],
            "additionalProperties": False,
        },
    },
}
INTERRUPTED: dict[str, dict[str, Any]] = {
    "four choices": {"n": 4, "max_tokens": 200, "ignore_eos": True},
    "a tool call": {
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "record_counts"}},
        "max_tokens": 900,
    },
    "masks and special tokens": {
        "bad_words": ["circle", "a red"],
        "typical_p": 0.9,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "return_token_ids": True,
        "max_tokens": 200,
    },
    "tools and a response format": {
        "tools": [TOOL],
        "response_format": as_format(LIST),
        "max_tokens": 900,
    },
    "a recursive grammar": {
        "grammar": 'root ::= value ("," value){24}\nvalue ::= [a-z]{3,9} | "(" value ")"',
        "max_tokens": 900,
    },
}


def stream_choices(url: str, fields: dict[str, Any], *, after: Callable[[int], None]) -> list[str]:
    """Return the text or the tool arguments of each choice, and its token IDs if they are requested.

    ``after`` is called after each chunk.
    """
    body = {
        "model": "tiny-llava",
        "messages": [{"role": "user", "content": "Describe it."}],
        "temperature": 1.0,
        "seed": 5,
        "stream": True,
        **fields,
    }
    texts: dict[int, str] = {}
    token_ids: list[int] = []
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=scaled(60)) as response:
        assert response.status_code == 200
        for number, line in enumerate(line for line in response.iter_lines() if line.startswith("data: {")):
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            for choice in chunk["choices"]:
                calls = choice["delta"].get("tool_calls") or []
                added = (choice["delta"].get("content") or "") + "".join(
                    call["function"].get("arguments") or "" for call in calls
                )
                texts[choice["index"]] = texts.get(choice["index"], "") + added
                token_ids += choice.get("token_ids", [])
            after(number)
    assert len(token_ids) == (fields["max_tokens"] if "return_token_ids" in fields else 0)
    return [text + str(token_ids or "") for _, text in sorted(texts.items())]


@pytest.mark.parametrize("name", INTERRUPTED)
def test_choices_and_tool_calls_are_exact_when_their_worker_is_killed(server: Server, name: str) -> None:
    fields = INTERRUPTED[name]
    uninterrupted = stream_choices(server.url, fields, after=lambda _: None)
    assert len(uninterrupted) == fields.get("n", 1)
    assert len(set(uninterrupted)) == len(uninterrupted)

    def kill_worker(number: int) -> None:
        if number == 12:
            server.workers[-1].send(signal.SIGKILL)
            server.start_worker()

    assert stream_choices(server.url, fields, after=kill_worker) == uninterrupted
    assert re.search(r"starting at token [1-9]", server.workers[-1].log)
