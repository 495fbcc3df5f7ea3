"""Router errors and unhandled exceptions are returned in OpenAI's format."""

from __future__ import annotations

import pytest

from tests.server.conftest import OwnStack, Stack


def test_unknown_urls_and_methods_return_errors_in_openais_format(stack: Stack) -> None:
    unknown = stack.http.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    wrong_method = stack.http.get("/v1/embeddings")
    assert (wrong_method.status_code, wrong_method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "POST, OPTIONS"


def test_an_unhandled_exception_returns_500_with_an_id_and_without_details(
    own_stack: OwnStack, caplog: pytest.LogCaptureFixture
) -> None:
    stack = own_stack()

    async def boom() -> None:
        raise RuntimeError("secret detail at 0xdeadbeef")

    stack.server.app.add_api_route("/boom", boom)
    response = stack.http.get("/boom")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert error["request_id"] in error["message"]
    assert any(error["request_id"] in record.getMessage() for record in caplog.records)
    assert stack.works()
