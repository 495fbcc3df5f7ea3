"""``Client.chat``: requests, responses and connection settings."""

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


def test_a_question_about_an_image_returns_a_response(client: AnyClient, server: ScriptedServer) -> None:
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


def test_a_question_without_an_image_is_plain_text(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?")
    assert server.last_body["messages"] == [{"role": "user", "content": "Hello?"}]


def test_omitted_options_and_none_are_not_sent(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?", model=None, max_tokens=None, stop=None, timeout=5.0)
    assert set(server.last_body) == {"messages", "model"}


def test_the_system_prompt_is_first_and_the_question_last(client: AnyClient, server: ScriptedServer) -> None:
    earlier = [user_message("What is this?", PNG), {"role": "assistant", "content": "A circle."}]
    client.chat("Which colour?", messages=earlier, system="Be brief.")
    assert [message["role"] for message in server.last_body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_messages_without_a_question_are_accepted(client: AnyClient, server: ScriptedServer) -> None:
    client.chat(messages=[user_message("Hello?")])
    assert server.last_body["messages"] == [{"role": "user", "content": "Hello?"}]


def test_unsupported_fields_can_be_passed_in_extra_body(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?", extra_body={"ignore_eos": True})
    assert server.last_body["ignore_eos"] is True


@pytest.mark.parametrize("arguments", [{}, {"messages": []}, {"messages": [user_message("a")], "image": PNG}])
def test_an_empty_request_is_a_type_error(
    client: AnyClient, server: ScriptedServer, arguments: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match="question"):
        client.chat(**arguments)  # type: ignore[arg-type]
    assert server.requests == []


def test_an_invalid_image_is_rejected_before_anything_is_sent(
    client: AnyClient, server: ScriptedServer, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match="No such file"):
        client.chat("What?", image=tmp_path / "none.png")
    assert server.requests == []


def test_the_default_model_is_the_first_listed_one_and_cached(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.models = ["first", "second"]
    client.chat("Hello?")
    client.chat("Hello?")
    assert [request.body["model"] for request in server.chats] == ["first", "first"]
    assert [request.path for request in server.requests].count("/v1/models") == 1


def test_a_specified_model_requires_no_model_list(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?", model="second")
    assert [request.path for request in server.requests] == ["/v1/chat/completions"]
    assert server.last_body["model"] == "second"


def test_the_default_model_is_looked_up_again_after_a_404(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?")
    server.models = ["next"]
    server.script(returns_error(404, "no model tiny-llava", code="model_not_found"))
    with pytest.raises(NotFoundError):
        client.chat("Hello?")
    client.chat("Hello?")
    assert server.last_body["model"] == "next"


def test_the_error_for_a_server_without_models_contains_the_remedy(
    client: AnyClient, server: ScriptedServer
) -> None:
    server.models = []
    with pytest.raises(APIError, match="Start a worker"):
        client.chat("Hello?")


def test_models_are_listed_with_their_details(client: AnyClient) -> None:
    [model] = client.models()
    assert (str(model), model.owned_by, model.details) == ("tiny-llava", "us", {"context_length": 512})


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"choices": []}', b"[]"])
def test_an_unexpected_response_is_an_error(client: AnyClient, server: ScriptedServer, body: bytes) -> None:
    server.script(returns(200, body, "text/html"))
    with pytest.raises(APIError, match="Check the base URL"):
        client.chat("Hello?")


def test_the_api_key_and_url_are_read_from_the_environment(
    make_client: MakeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_API_KEY", "secret-1")
    make_client().chat("Hello?")
    assert server.chats[-1].headers["authorization"] == "Bearer secret-1"
    monkeypatch.setenv("LLAVA_BASE_URL", "http://example.test:1/v1/")
    with Client() as client:
        assert client.base_url == "http://example.test:1"


def test_arguments_take_precedence_over_the_environment(
    make_client: MakeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_API_KEY", "secret-1")
    monkeypatch.setenv("LLAVA_BASE_URL", "http://127.0.0.1:1")
    make_client(server.url, api_key="secret-2").chat("Hello?")
    assert server.chats[-1].headers["authorization"] == "Bearer secret-2"


def test_no_key_is_sent_by_default_and_reprs_hide_the_key(
    make_client: MakeClient, server: ScriptedServer
) -> None:
    make_client().chat("Hello?")
    assert "authorization" not in server.chats[-1].headers
    keyed = make_client(api_key="secret-1").client
    assert "secret-1" not in repr(keyed) + repr(vars(keyed))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://host:0"]
)
def test_an_invalid_base_url_is_rejected_immediately(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http://127.0.0.1:8000"):
        Client(url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "example.test"])
def test_proxy_variables_apply_only_to_other_machines(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client(f"http://{host}:8000") as client:
        assert client._http.trust_env is (host == "example.test")


def test_a_custom_http_client_is_used_and_not_closed(server: ScriptedServer) -> None:
    with httpx2.Client(headers={"x-team": "blue"}) as http:
        with Client(server.url, http_client=http) as client:
            client.chat("Hello?")
        assert not http.is_closed
    assert server.chats[-1].headers["x-team"] == "blue"


def test_a_custom_async_http_client_is_used_and_not_closed(server: ScriptedServer) -> None:
    async def scenario() -> bool:
        async with httpx2.AsyncClient(headers={"x-team": "blue"}) as http:
            async with AsyncClient(server.url, http_client=http) as client:
                await client.chat("Hello?")
            return bool(http.is_closed)

    assert asyncio.run(scenario()) is False
    assert server.chats[-1].headers["x-team"] == "blue"
