"""What the bundled model really answers is what the OpenAPI document says, as from a scripted worker."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.machine_speed import scaled
from tests.server.api.openapi.test_answer_shapes import STREAMED, WHOLE
from tests.server.conformance import misfits

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BROKEN = ("refuse", "break", "say-all")  # words that only a scripted worker understands
SHORT = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}


def asked() -> list[tuple[str, dict[str, Any]]]:
    """Every form of an answer, whole and streamed, and short."""
    bodies = [
        (path, {**body, "stream": is_stream})
        for path, body in STREAMED
        for is_stream in (False, True)
        if not any(word in str(body) for word in BROKEN)
    ]
    return [
        (path, {**body, "model": "tiny-llava", **({SHORT[path]: 24} if path in SHORT else {})})
        for path, body in bodies + WHOLE
    ]


def test_every_form_of_an_answer_is_what_the_document_says(tiny_server: str) -> None:
    with httpx2.Client(base_url=tiny_server, timeout=scaled(60)) as http:
        answers = [http.post(path, json=body) for path, body in asked()]
        answers += [http.get(path) for path in ("/v1/models", "/readyz", "/livez")]
    assert {each.status_code for each in answers} == {200}
    assert [misfits(each) for each in answers] == [[]] * len(answers)
