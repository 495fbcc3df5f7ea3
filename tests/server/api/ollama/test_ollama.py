"""Ollama's API with the unmodified ``ollama`` package: chats, prompts, embeddings, models and errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import ollama
import pytest
from llava_server.api.ollama.options import OllamaOptions
from llava_server.api.ollama.request import (
    EmbedRequest,
    GenerateRequest,
    LegacyEmbedRequest,
    OllamaChatRequest,
    OllamaMessage,
    PullRequest,
    ShowRequest,
)
from llava_wire.messages.job import Message
from llava_wire.messages.sampling_params import Grammar
from ollama import _types as ollama_types
from pydantic import BaseModel

from tests.server.api.chat.test_tools import CITY, NOW, PARIS
from tests.server.api_key_cli import ApiKeyCli
from tests.server.conftest import OwnStack, Stack, connect
from tests.server.document_check import violations
from tests.server.image_files import data_url, encoded, scene
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

IMAGE = encoded(scene())
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "Now.", "parameters": CITY},
}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


@pytest.fixture
def client(stack: Stack) -> Iterator[ollama.Client]:
    with ollama.Client(stack.server.url) as client:
        yield client


def user_message(text: str = "say one two") -> list[Any]:
    return [{"role": "user", "content": text}]


def lines_of(response: httpx2.Response) -> list[Any]:
    """Return the objects in a stream."""
    assert response.headers["content-type"] == "application/x-ndjson"
    assert violations(response) == []
    return [json.loads(line) for line in response.text.splitlines()]


def chat(stack: Stack, **fields: Any) -> httpx2.Response:
    return stack.http.post("/api/chat", json={"model": MODEL, "messages": user_message(), **fields})


def test_the_client_receives_a_complete_message(client: ollama.Client, stack: Stack) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *user_message()]
    response = client.chat(MODEL, messages)
    assert (response.message.role, response.message.content) == ("assistant", "one two")
    assert (response.model, response.done, response.done_reason) == (MODEL, True, "stop")
    assert (response.prompt_eval_count, response.eval_count, response.load_duration) == (11, 3, 0)
    assert stack.worker.assignments[-1].job.messages[0] == Message("system", ("Be brief.",))


def test_durations_are_nanoseconds_and_add_up(client: ollama.Client) -> None:
    response = client.chat(MODEL, user_message())
    assert response.prompt_eval_duration and response.eval_duration and response.total_duration
    assert response.prompt_eval_duration > 100_000 and response.eval_duration > 1_000
    measured = response.prompt_eval_duration + response.eval_duration
    assert measured == pytest.approx(response.total_duration, rel=0.05)


def test_a_stream_is_the_default_and_ends_with_an_object_that_is_done(stack: Stack) -> None:
    *parts, last = lines_of(chat(stack))
    assert [part["message"]["content"] for part in parts] == ["one", " two"]
    assert [part["done"] for part in parts] == [False, False]
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert last["eval_count"] == 3 and "eval_count" not in parts[0]
    assert chat(stack, stream=False).json()["message"]["content"] == "one two"


def test_the_clients_stream_joins_to_the_text(client: ollama.Client) -> None:
    chunks = list(client.chat(MODEL, user_message("count 3"), stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == "1 2 3"
    assert chunks[-1].done_reason == "length"


def test_an_idle_stream_sends_objects_without_text(own_stack: OwnStack) -> None:
    stack = own_stack(keepalive_s=0.02)
    with stack.http.stream("POST", "/api/generate", json={"model": MODEL, "prompt": "hold"}) as response:
        lines = response.iter_lines()
        first, second = (json.loads(next(lines)) for _ in range(2))
        stack.worker.release.set()
        rest = [json.loads(line) for line in lines]
    assert (first["response"], second["response"], second["done"]) == ("begun ", "", False)
    assert "".join(each["response"] for each in [first, second, *rest]) == "begun done"


def test_images_precede_the_text_and_may_be_data_urls(client: ollama.Client, stack: Stack) -> None:
    base64_image = base64.b64encode(IMAGE).decode()
    message = {"role": "user", "content": "What?", "images": [IMAGE, base64_image]}
    assert client.chat(MODEL, [message]).message.content == "user:[40x20][40x20]What?"
    message["images"] = [data_url(IMAGE)]
    response = chat(stack, stream=False, messages=[message])
    assert response.json()["message"]["content"] == "user:[40x20]What?"


@pytest.mark.parametrize("name", [MODEL, f"{MODEL}:latest"])
def test_the_tag_latest_can_be_omitted(client: ollama.Client, stack: Stack, name: str) -> None:
    assert client.chat(name, user_message()).model == name
    assert stack.worker.assignments[-1].job.model == MODEL
    assert client.show(name).capabilities == ["completion", "vision", "tools"]


def test_another_tag_is_a_different_model(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not exist") as caught:
        client.chat(f"{MODEL}:7b", user_message())
    assert caught.value.status_code == 404


@pytest.mark.parametrize("is_stream", [False, True])
def test_tool_calls_are_objects_and_their_results_reach_the_worker(
    client: ollama.Client, stack: Stack, is_stream: bool
) -> None:
    question = user_message(f"say {PARIS}\n{NOW}")
    if is_stream:
        chunks = list(client.chat(MODEL, question, tools=[WEATHER, CLOCK], stream=True))
        calls = [call for chunk in chunks for call in chunk.message.tool_calls or ()]
        assert chunks[-1].done_reason == "stop"
    else:
        response = client.chat(MODEL, question, tools=[WEATHER, CLOCK])
        calls = list(response.message.tool_calls or ())
        assert (response.done_reason, response.message.content) == ("stop", "")
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", {"city": "Paris"}),
        ("clock", {}),
    ]
    results = [
        {"role": "tool", "tool_name": "clock", "content": "noon"},
        {"role": "tool", "tool_name": "weather", "content": "18 degrees"},
    ]
    asked = {"role": "assistant", "content": "", "tool_calls": calls}
    client.chat(MODEL, [*question, asked, *results, *user_message("say so")], tools=[WEATHER, CLOCK])
    sent = stack.worker.assignments[-1].job.messages
    assert sent[-1].parts == (
        "<tool_response>noon</tool_response>",
        "<tool_response>18 degrees</tool_response>",
        "say so",
    )


def test_results_are_in_the_prompt_in_the_order_of_the_messages(stack: Stack) -> None:
    calls = [{"id": name[0], "function": {"name": name, "arguments": {}}} for name in ("weather", "clock")]
    history = [*user_message(), {"role": "assistant", "tool_calls": calls}]
    results = [
        {"role": "tool", "tool_name": "clock", "content": "noon"},
        {"role": "tool", "tool_call_id": "w", "content": "18 degrees"},
        {"role": "tool", "content": "rain"},
    ]
    assert chat(stack, messages=[*history, *results]).status_code == 200
    texts = ("noon", "18 degrees", "rain")
    assert stack.worker.assignments[-1].job.messages[-1].parts == tuple(
        f"<tool_response>{text}</tool_response>" for text in texts
    )


def test_a_python_function_is_a_tool(client: ollama.Client, stack: Stack) -> None:
    def weather(city: str) -> str:
        """Return the weather.

        Args:
          city: Name of the city.
        """
        return city

    [call] = client.chat(MODEL, user_message(f"say {PARIS}"), tools=[weather]).message.tool_calls or ()
    assert weather(**call.function.arguments) == "Paris"


def test_a_truncated_call_is_omitted(stack: Stack) -> None:
    truncated = user_message(f"say {PARIS.removesuffix('}}</tool_call>')}")
    for is_stream in (True, False):
        response = chat(stack, messages=truncated, tools=[WEATHER], stream=is_stream)
        assert "tool_calls" not in response.text and response.status_code == 200


def test_a_go_clients_null_properties_are_omitted(stack: Stack) -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": None}},
    }
    assert chat(stack, tools=[tool]).status_code == 200
    grammar = stack.worker.assignments[-1].job.sampling.grammar
    assert grammar is not None and "properties" not in grammar.text


def test_a_final_assistant_message_is_continued(client: ollama.Client, stack: Stack) -> None:
    messages = [*user_message("Hi"), {"role": "assistant", "content": "say more"}]
    assert client.chat(MODEL, messages).message.content == "more"
    assert stack.worker.assignments[-1].job.form == "continued"


def test_a_format_is_a_grammar(client: ollama.Client, stack: Stack) -> None:
    class City(BaseModel):
        name: str

    client.chat(MODEL, user_message(), format=City.model_json_schema())
    grammar = stack.worker.assignments[-1].job.sampling.grammar
    assert grammar is not None and grammar.param == "format"
    properties = {"name": {"type": "string"}}  # without titles
    assert json.loads(grammar.text) == {"type": "object", "properties": properties, "required": ["name"]}
    client.generate(MODEL, "say yes", format="json")
    assert stack.worker.assignments[-1].job.sampling.grammar == Grammar("json_object", param="format")


def test_log_probabilities_are_in_the_object_with_their_text(client: ollama.Client) -> None:
    chunks = list(client.chat(MODEL, user_message(), stream=True, logprobs=True, top_logprobs=2))
    for chunk in chunks[:-1]:
        [token] = chunk.logprobs or ()
        assert (token.token, token.logprob) == (chunk.message.content, -0.5)
        assert [each.logprob for each in token.top_logprobs or ()] == [-0.5, -1.5]
    assert chunks[-1].logprobs is None


def test_a_prompt_is_a_user_message(client: ollama.Client) -> None:
    response = client.generate(MODEL, "What?", system="Be brief.", images=[IMAGE])
    assert response.response == "system:Be brief.|user:[40x20]What?"
    parts = [each.response for each in client.generate(MODEL, "say a b", stream=True)]
    assert parts == ["a", " b", ""]


def test_a_raw_prompt_bypasses_the_template(client: ollama.Client, stack: Stack) -> None:
    response = client.generate(MODEL, "say a", raw=True, options={"num_predict": 7}, logprobs=True)
    job = stack.worker.assignments[-1].job
    assert (response.response, job.form, job.sampling.max_tokens) == ("a", "raw", 7)
    assert job.sampling.num_logprobs == 0


def test_a_request_without_a_prompt_only_checks_the_model(client: ollama.Client, stack: Stack) -> None:
    generated, talked = client.generate(MODEL, keep_alive=0), client.chat(MODEL)
    assert (generated.response, generated.done, generated.done_reason) == ("", True, "load")
    assert (talked.message.content, talked.done, talked.done_reason) == ("", True, "load")
    assert stack.worker.assignments == []
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        client.generate("unknown")


def test_ollamas_defaults_apply(client: ollama.Client, stack: Stack) -> None:
    client.chat(MODEL, user_message())
    sampling = stack.worker.assignments[-1].job.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.8, 40, 0.9, 0)
    assert (sampling.repetition_penalty, sampling.max_tokens, sampling.stop) == (1, None, ())


def test_a_seed_of_minus_one_is_random(client: ollama.Client, stack: Stack) -> None:
    for seed in (7, -1, -1):
        client.chat(MODEL, user_message(), options={"seed": seed})
    first, second, third = (assignment.job.sampling.seed for assignment in stack.worker.assignments)
    assert first == 7 and second != third and min(second, third) >= 0


def test_a_whole_number_may_be_a_float(client: ollama.Client, stack: Stack) -> None:
    client.chat(MODEL, user_message(), options={"num_predict": 7.0, "top_k": 5.0})
    sampling = stack.worker.assignments[-1].job.sampling
    assert (sampling.max_tokens, sampling.top_k) == (7, 5)
    with pytest.raises(ollama.ResponseError, match="options.top_k"):
        client.chat(MODEL, user_message(), options={"top_k": 5.5})


def test_embeddings_have_unit_length_after_truncation(client: ollama.Client) -> None:
    response = client.embed(MODEL, ["ab", "abc"])
    assert response.embeddings == [[2, 0], [3, 0]] and response.prompt_eval_count == 5
    assert client.embed(MODEL, "abc", dimensions=1).embeddings == [[1]]
    assert client.embed(MODEL, "").embeddings == client.embed(MODEL, []).embeddings == []
    assert client.embeddings(MODEL, "abc").embedding == [3, 0]
    assert client.embeddings(MODEL).embedding == []


def test_models_are_listed_and_described(client: ollama.Client, stack: Stack) -> None:
    [model] = client.list().models
    assert model.model == f"{MODEL}:latest" and model.digest and len(model.digest) >= 12
    assert model.details and (model.details.family, model.details.quantization_level) == ("llava", "FP32")
    [running] = client.ps().models
    assert (running.model, running.context_length) == (model.model, 4096)
    assert running.expires_at and running.expires_at.year == 9999
    shown = client.show(MODEL)
    assert shown.modelinfo and shown.modelinfo["llava.context_length"] == 4096
    assert shown.modified_at == model.modified_at
    version = stack.http.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)


def test_a_model_without_a_worker_is_listed_but_not_running(own_stack: OwnStack) -> None:
    stack = own_stack()
    stack.worker.stop()
    wait_until(lambda: stack.http.get("/api/ps").json() == {"models": []})
    assert len(stack.http.get("/api/tags").json()["models"]) == 1


def test_a_served_model_can_be_pulled(client: ollama.Client) -> None:
    assert client.pull(MODEL, stream=False).status == "success"
    assert [each.status for each in client.pull(MODEL, stream=True)] == ["success"]
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        list(client.pull("unknown", stream=True))


CHANGES: list[Callable[[ollama.Client], Any]] = [
    lambda client: client.delete(MODEL),
    lambda client: client.copy(MODEL, "other"),
    lambda client: client.push(MODEL),
    lambda client: client.create("other", from_=MODEL),
    lambda client: client.create_blob(__file__),
]


@pytest.mark.parametrize("change", CHANGES)
def test_models_cannot_be_changed(client: ollama.Client, change: Callable[[ollama.Client], Any]) -> None:
    with pytest.raises(
        ollama.ResponseError, match=r"/api/[a-z]+.* is not supported\. .*llava-serve worker"
    ) as caught:
        change(client)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_a_probe_with_head_succeeds_without_a_body(stack: Stack, path: str) -> None:
    response = stack.http.head(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_early_failure_has_a_status(client: ollama.Client, is_stream: bool) -> None:
    with pytest.raises(ollama.ResponseError, match="scripted failure") as caught:
        if is_stream:
            list(client.generate(MODEL, "refuse context_length_exceeded", stream=True))
        client.generate(MODEL, "refuse context_length_exceeded")
    assert caught.value.status_code == 400


def test_a_failure_during_a_stream_is_its_last_line(client: ollama.Client, stack: Stack) -> None:
    first, last = lines_of(chat(stack, messages=user_message("break internal_error")))
    assert first["message"]["content"] == "half "
    assert (last["error"], last["code"]) == ("scripted failure internal_error", "internal_error")
    with pytest.raises(ollama.ResponseError, match="scripted failure"):
        list(client.generate(MODEL, "break internal_error", stream=True))


INVALID: list[tuple[str, dict[str, Any], str, str]] = [
    ("chat", {"messages": [{"role": "user", "images": ["aGk="]}]}, "messages[0].images[0]", "not an image"),
    ("generate", {"images": ["aGk="]}, "images[0]", "not an image"),
    ("generate", {"system": "x", "images": ["aGk="]}, "images[0]", "images[0]: the data"),
    ("generate", {"prompt": "refuse context_length_exceeded"}, "prompt", "scripted"),
    ("chat", {"messages": [{"role": "robot"}]}, "messages[0].role", "robot"),
    ("chat", {"options": {"temperature": 3}}, "options.temperature", "got 3"),
    ("chat", {"options": {"num_predict": 0}}, "options.num_predict", "-1"),
    ("chat", {"options": {"mirostat": 2}}, "options.mirostat", "mirostat is not supported"),
    ("chat", {"options": {"tfs_z": 0.5}}, "options.tfs_z", "tfs_z is not supported"),
    (
        "chat",
        {"options": {"repeat_penalty": 1.1, "repeat_last_n": 32}},
        "options.repeat_last_n",
        "options.repeat_last_n is 32",
    ),
    ("chat", {"options": {"stop": list("abcde")}}, "options.stop", "at most 4"),
    ("chat", {"think": True}, "think", "no reasoning mode"),
    ("chat", {"think": "high"}, "think", "no reasoning mode"),
    ("chat", {"format": "xml"}, "format", "xml"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "21"),
    ("chat", {"tools": [CLOCK, CLOCK]}, "tools", "clock"),
    ("generate", {"template": "{{ .Prompt }}"}, "template", "template is not supported"),
    ("generate", {"suffix": "x"}, "suffix", "suffix is not supported"),
    ("generate", {"context": [1]}, "context", "/api/chat"),
    ("generate", {"raw": True, "system": "x"}, "system", "raw"),
    ("generate", {"raw": True, "images": ["aGk="]}, "images", "raw"),
    ("embed", {"input": [7]}, "input[0]", "string"),
    ("embed", {"input": ["a", "refuse context_length_exceeded"]}, "input[1]", "scripted"),
    ("embeddings", {"prompt": "refuse context_length_exceeded"}, "prompt", "scripted"),
    ("show", {"model": None}, "model", "model is required"),
    ("show", {"model": "unknown"}, "model", "does not exist"),
]


def test_an_error_has_ollamas_shape_and_names_the_field(stack: Stack) -> None:
    bodies: dict[str, Any] = {"chat": {"messages": user_message()}, "generate": {"prompt": "say x"}}
    for route, fields, param, words in INVALID:
        body = {"model": MODEL, **bodies.get(route, {}), **fields}
        response = stack.http.post(f"/api/{route}", json=body)
        error = response.json()
        assert response.status_code in (400, 404), fields
        assert error["param"] == param, error
        assert words in error["error"] and "image_url" not in error["error"], error


def test_values_that_change_nothing_are_accepted(stack: Stack) -> None:
    options = {
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "tfs_z": 1.0,
        "typical_p": 1,
        "repeat_last_n": 32,
        "num_ctx": 2048,
        "num_gpu": 99,
        "unknown": 1,
    }
    fields = {"think": False, "keep_alive": -1, "format": "", "tools": [], "options": options, "extra": 1}
    assert chat(stack, **fields).status_code == 200
    empty = {"template": "", "suffix": "", "context": [], "system": "", "raw": False, "images": []}
    body = {"model": MODEL, "prompt": "say x", "stream": False, **empty}
    assert stack.http.post("/api/generate", json=body).json()["response"] == "x"


@pytest.mark.parametrize("header", [{"origin": "https://other.example"}, {"sec-fetch-site": "cross-site"}])
def test_a_browser_must_send_a_json_type(stack: Stack, header: dict[str, str]) -> None:
    """A web page from another origin can send a body of another type without a preflight request."""
    headers = {"content-type": "text/plain", **header}
    response = stack.http.post("/api/chat", content=b"{}", headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


def test_other_clients_can_omit_the_json_type(stack: Stack) -> None:
    """In Ollama's documentation, curl sends JSON with the type of a form."""
    body = {"model": MODEL, "prompt": "say x", "stream": False}
    for media_type in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        response = stack.http.post("/api/generate", content=json.dumps(body), headers=media_type)
        assert response.json()["response"] == "x"


@pytest.mark.parametrize(("path", "extra"), [("chat", {}), ("generate", {"prompt": "go-on"})])
def test_a_disconnect_cancels_the_job(stack: Stack, path: str, extra: dict[str, Any]) -> None:
    body = json.dumps({"model": MODEL, "messages": user_message("go-on"), **extra}).encode()
    head = f"POST /api/{path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with connect(stack) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: bool(stack.worker.refused))


def test_the_client_sends_its_api_key(own_stack: OwnStack, api_key_cli: ApiKeyCli) -> None:
    stack = own_stack(auth=True)
    key = api_key_cli.create("--requests-per-min", "1")
    with ollama.Client(stack.server.url) as anonymous:
        for ask in (anonymous.list, lambda: anonymous.chat(MODEL, user_message())):
            with pytest.raises(ollama.ResponseError, match="API key is required") as caught:
                ask()
            assert caught.value.status_code == 401
    with ollama.Client(stack.server.url, headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.chat(MODEL, user_message()).message.content == "one two"
        with pytest.raises(ollama.ResponseError, match="limit of 1 requests per minute") as caught:
            client.generate(MODEL, "say x")
        assert caught.value.status_code == 429


FIELDS: list[tuple[type[BaseModel], type[BaseModel]]] = [
    (ollama_types.ChatRequest, OllamaChatRequest),
    (ollama_types.GenerateRequest, GenerateRequest),
    (ollama_types.EmbedRequest, EmbedRequest),
    (ollama_types.EmbeddingsRequest, LegacyEmbedRequest),
    (ollama_types.ShowRequest, ShowRequest),
    (ollama_types.PullRequest, PullRequest),
    (ollama_types.Options, OllamaOptions),
    (ollama_types.Message, OllamaMessage),
]


@pytest.mark.parametrize(("package_type", "request_type"), FIELDS)
def test_every_field_of_the_package_is_known(
    package_type: type[BaseModel], request_type: type[BaseModel]
) -> None:
    assert set(package_type.model_fields) <= set(request_type.model_fields)
