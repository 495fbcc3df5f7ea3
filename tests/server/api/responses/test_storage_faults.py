"""Storage of responses while Redis fails: requests fail with 503, and the outputs are saved later."""

from __future__ import annotations

import pytest
import redis
from llava_wire.redis.keys import PREFIX

from tests.server.conftest import OwnStack, Valkey, running_stack
from tests.server.scripted_worker import MODEL
from tests.server.stored_outputs import wait_until_saved
from tests.waiting import wait_until

BODY = {"model": MODEL, "input": "say yes"}


@pytest.mark.parametrize("kind", ["responses", "response_bytes"])
def test_an_output_is_saved_although_redis_lost_a_key(own_stack: OwnStack, kind: str) -> None:
    stack = own_stack()
    created = stack.http.post("/v1/responses", json={**BODY, "input": "hold", "background": True}).json()
    url = stack.server.services.settings.redis_url.get_secret_value()
    with redis.Redis.from_url(url) as queue:
        queue.delete(f"{PREFIX}{kind}")  # the data is lost
        stack.worker.release.set()
        wait_until_saved(stack, created["id"])
        continued = stack.http.post("/v1/responses", json={**BODY, "previous_response_id": created["id"]})
        assert continued.status_code == 200


def test_every_route_returns_503_without_redis_and_works_again_afterwards(valkey: Valkey) -> None:
    with running_stack(f"unix://{valkey.socket}", auth=False) as stack:
        first = stack.http.post("/v1/responses", json=BODY).json()["id"]
        chat = stack.chat("say yes", store=True).json()["id"]
        valkey.kill()
        continued = {**BODY, "previous_response_id": first}
        requests = [
            ("POST", "/v1/responses", continued),
            ("POST", "/v1/responses/input_tokens", continued),
            ("GET", f"/v1/responses/{first}", None),
            ("GET", f"/v1/responses/{first}/input_items", None),
            ("DELETE", f"/v1/responses/{first}", None),
            ("GET", "/v1/chat/completions", None),
            ("GET", f"/v1/chat/completions/{chat}", None),
            ("GET", f"/v1/chat/completions/{chat}/messages", None),
            ("POST", f"/v1/chat/completions/{chat}", {"metadata": None}),
            ("DELETE", f"/v1/chat/completions/{chat}", None),
        ]
        for method, path, body in requests:
            response = stack.http.request(method, path, json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_unavailable"), (
                path
            )
        valkey.start()
        wait_until(lambda: stack.http.post("/v1/responses", json=BODY).status_code == 200)
        response = stack.http.post("/v1/responses", json=continued)  # the data is lost
        assert response.json()["error"]["code"] == "previous_response_not_found"
