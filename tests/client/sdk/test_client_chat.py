"""Asking for a whole answer: what is sent, what comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
import pytest
from llava_client import (
    APIError,
    AsyncClient,
    Client,
    ConfigurationError,
    ImageError,
    NotFoundError,
    user_message,
)

from tests.client.blocking_clients import AnyClient
from tests.client.conftest import MakeClient
from tests.client.scripted_server import PNG, TEXT, ScriptedServer, returns, returns_error


def test_a_question_about_a_picture_is_answered(client: AnyClient, server: ScriptedServer) -> None:
    answer = client.chat("What is this?", image=PNG, max_tokens=9, temperature=0.0)

    assert (answer.text, str(answer), answer.finish_reason) == (TEXT, TEXT, "stop")
    assert (answer.id, answer.model, answer.request_id) == ("chatcmpl-1", "tiny-llava", "req-7")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (71, 64)
    [message] = server.last_body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert {name: server.last_body[name] for name in ("max_tokens", "temperature")} == {
        "max_tokens": 9,
        "temperature": 0.0,
    }


def test_a_question_without_a_picture_is_plain_text(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?")
    assert server.last_body["messages"] == [{"role": "user", "content": "Hello?"}]


def test_options_left_out_or_none_are_not_sent(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?", model=None, max_tokens=None, stop=None, timeout=5.0)
    assert set(server.last_body) == {"messages", "model"}


def test_the_system_text_comes_first_and_the_question_last(client: AnyClient, server: ScriptedServer) -> None:
    earlier = [user_message("What is this?", PNG), {"role": "assistant", "content": "A circle."}]
    client.chat("Which colour?", messages=earlier, system="Be brief.")
    assert [message["role"] for message in server.last_body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_messages_alone_are_enough(client: AnyClient, server: ScriptedServer) -> None:
    client.chat(messages=[user_message("Hello?")])
    assert server.last_body["messages"] == [{"role": "user", "content": "Hello?"}]


def test_fields_the_client_does_not_know_are_passed_on(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?", extra_body={"ignore_eos": True})
    assert server.last_body["ignore_eos"] is True


@pytest.mark.parametrize("arguments", [{}, {"messages": []}, {"messages": [user_message("a")], "image": PNG}])
def test_asking_nothing_is_a_type_error(
    client: AnyClient, server: ScriptedServer, arguments: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match="question"):
        client.chat(**arguments)  # type: ignore[arg-type]
    assert server.requests == []


def test_a_bad_picture_is_refused_before_anything_is_sent(
    client: AnyClient, server: ScriptedServer, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match="No such file"):
        client.chat("What?", image=tmp_path / "none.png")
    assert server.requests == []


def test_without_a_model_the_first_listed_one_is_asked_for_once(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.models = ["first", "second"]
    client.chat("Hello?")
    client.chat("Hello?")
    assert [request.body["model"] for request in server.chats] == ["first", "first"]
    assert [request.path for request in server.requests].count("/v1/models") == 1


def test_a_named_model_needs_no_listing(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?", model="second")
    assert [request.path for request in server.requests] == ["/v1/chat/completions"]
    assert server.last_body["model"] == "second"


def test_a_model_that_went_away_is_looked_up_anew(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?")
    server.models = ["next"]
    server.script(returns_error(404, "no model tiny-llava", code="model_not_found"))
    with pytest.raises(NotFoundError):
        client.chat("Hello?")
    client.chat("Hello?")
    assert server.last_body["model"] == "next"


def test_a_server_without_a_model_says_what_to_do(client: AnyClient, server: ScriptedServer) -> None:
    server.models = []
    with pytest.raises(APIError, match="start a worker"):
        client.chat("Hello?")


def test_models_are_listed_with_their_details(client: AnyClient) -> None:
    [model] = client.models()
    assert (str(model), model.owned_by, model.details) == ("tiny-llava", "us", {"context_length": 512})


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"choices": []}', b"[]"])
def test_an_answer_of_another_shape_is_an_error_that_names_the_address(
    client: AnyClient, server: ScriptedServer, body: bytes
) -> None:
    server.script(returns(200, body, "text/html"))
    with pytest.raises(APIError, match="is the base URL right"):
        client.chat("Hello?")


def test_the_key_and_the_address_come_from_the_environment(
    make_client: MakeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_API_KEY", "secret-1")
    make_client().chat("Hello?")
    assert server.chats[-1].headers["authorization"] == "Bearer secret-1"
    monkeypatch.setenv("LLAVA_BASE_URL", "http://example.test:1/v1/")
    with Client() as client:
        assert client.base_url == "http://example.test:1"


def test_arguments_win_over_the_environment(
    make_client: MakeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_API_KEY", "secret-1")
    monkeypatch.setenv("LLAVA_BASE_URL", "http://127.0.0.1:1")
    make_client(server.url, api_key="secret-2").chat("Hello?")
    assert server.chats[-1].headers["authorization"] == "Bearer secret-2"


def test_without_a_key_none_is_sent_and_no_repr_shows_one(
    make_client: MakeClient, server: ScriptedServer
) -> None:
    make_client().chat("Hello?")
    assert "authorization" not in server.chats[-1].headers
    keyed = make_client(api_key="secret-1").client
    assert "secret-1" not in repr(keyed) + repr(vars(keyed))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://host:0"]
)
def test_a_base_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http://127.0.0.1:8000"):
        Client(url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "example.test"])
def test_a_proxy_of_the_environment_is_used_only_for_other_machines(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client(f"http://{host}:8000") as client:
        assert client._http.trust_env is (host == "example.test")


def test_a_given_http_client_is_used_and_left_open(server: ScriptedServer) -> None:
    with httpx2.Client(headers={"x-team": "blue"}) as http:
        with Client(server.url, http_client=http) as client:
            client.chat("Hello?")
        assert not http.is_closed
    assert server.chats[-1].headers["x-team"] == "blue"


def test_a_given_async_http_client_is_used_and_left_open(server: ScriptedServer) -> None:
    async def scenario() -> bool:
        async with httpx2.AsyncClient(headers={"x-team": "blue"}) as http:
            async with AsyncClient(server.url, http_client=http) as client:
                await client.chat("Hello?")
            return bool(http.is_closed)

    assert asyncio.run(scenario()) is False
    assert server.chats[-1].headers["x-team"] == "blue"
