"""Responses of the bundled model match the OpenAPI document."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.api.openapi.test_response_shapes import GENERATING, OTHER
from tests.server.document_check import violations

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCRIPTED = ("refuse", "break", "say-all")  # prompts that only the scripted worker understands
SHORT = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Return requests for every kind of response, both streamed and non-streamed, limited to a few tokens."""
    bodies = [
        (path, {**body, "stream": is_stream})
        for path, body in GENERATING
        for is_stream in (False, True)
        if not any(word in str(body) for word in SCRIPTED)
    ]
    return [
        (path, {**body, "model": "tiny-llava", **({SHORT[path]: 24} if path in SHORT else {})})
        for path, body in bodies + OTHER
    ]


def test_every_response_of_the_bundled_model_matches_the_openapi_document(tiny_server: str) -> None:
    with httpx2.Client(base_url=tiny_server, timeout=scaled(60)) as http:
        responses = [http.post(path, json=body) for path, body in requests()]
        responses += [http.get(path) for path in ("/v1/models", "/readyz", "/livez")]
    assert {response.status_code for response in responses} == {200}
    assert [violations(response) for response in responses] == [[]] * len(responses)
