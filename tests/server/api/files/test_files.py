"""/v1/files: files are stored in chunks, limited in number and size, and visible only to their tenant."""

from __future__ import annotations

import httpx2
import pytest
import redis
from llava_wire.redis.keys import PREFIX

from tests.machine_speed import scaled
from tests.server.batch_requests import KEYS, input_file, read_results, request_line, tenant_clients, upload
from tests.server.conftest import OwnStack, Serve, Stack


def test_a_file_is_stored_listed_read_and_deleted(stack: Stack) -> None:
    data = input_file(request_line("a", "say yes"))
    stored = upload(stack.http, data).json()
    assert (stored["object"], stored["bytes"], stored["filename"]) == ("file", len(data), "requests.jsonl")
    assert stored["expires_at"] - stored["created_at"] == pytest.approx(7 * 86400, abs=5)
    assert stack.http.get("/v1/files").json()["data"][0] == stored
    assert stack.http.get("/v1/files?purpose=batch_output").json()["data"] == []
    assert read_results(stack.http, stored["id"])[0]["custom_id"] == "a"
    assert stack.http.delete(f"/v1/files/{stored['id']}").json()["deleted"] is True
    for response in (
        stack.http.get(f"/v1/files/{stored['id']}"),
        stack.http.get(f"/v1/files/{stored['id']}/content"),
        stack.http.delete(f"/v1/files/{stored['id']}"),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "file_not_found")


def test_a_file_of_several_chunks_is_read_back_byte_for_byte(stack: Stack) -> None:
    data = bytes(range(256)) * 4097 * 3  # more than three chunks; the last one is not full
    stored = upload(stack.http, data).json()
    assert stack.http.get(f"/v1/files/{stored['id']}/content").content == data


@pytest.mark.parametrize("purpose", ["fine-tune", "evals", "", "batch_output"])
def test_another_purpose_is_rejected_with_the_field(stack: Stack, purpose: str) -> None:
    response = upload(stack.http, b"{}", purpose=purpose)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "purpose")


def test_a_missing_purpose_is_reported_as_required(stack: Stack) -> None:
    error = stack.http.post("/v1/files", files={"file": ("a", b"{}")}).json()["error"]
    assert (error["code"], error["message"]) == (
        "invalid_value",
        "purpose is required. Set it to one of batch, vision, user_data, assistants.",
    )


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "application/json"}, b"{}", 415),
        ({"content-type": "multipart/form-data"}, b"{}", 400),
        ({"content-type": "multipart/form-data; boundary=x"}, b"no form at all", 400),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x--\r\n", 400),
    ],
)
def test_a_body_that_is_not_a_form_with_a_file_is_rejected(
    stack: Stack, headers: dict[str, str], body: bytes, status: int
) -> None:
    response = stack.http.post("/v1/files", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] != "internal_error"


def test_the_files_of_a_key_are_limited(own_stack: OwnStack) -> None:
    stack = own_stack(max_files=2, api_keys=",".join(KEYS))
    with tenant_clients(stack) as (alice, bob):
        first, _ = upload(alice, b"1").json(), upload(alice, b"2")
        rejected = upload(alice, b"3")
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "too_many_files")
        assert upload(bob, b"3").status_code == 200
        alice.delete(f"/v1/files/{first['id']}")
        assert upload(alice, b"3").status_code == 200


def test_the_bytes_of_a_key_and_of_all_keys_are_limited_and_deleted_files_do_not_count(
    own_stack: OwnStack, queue_url: str
) -> None:
    stack = own_stack(max_files_mb=1, max_all_files_mb=1, api_keys=",".join(KEYS))
    with tenant_clients(stack) as (alice, bob):
        stored = upload(alice, b"x" * 700_000).json()
        assert upload(alice, b"x" * 700_000).status_code == 429
        rejected = upload(bob, b"x" * 700_000)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "storage_full")
        assert "retry-after" in rejected.headers
        alice.delete(f"/v1/files/{stored['id']}")
        assert upload(bob, b"x" * 700_000).status_code == 200
        with redis.Redis.from_url(queue_url) as client:
            assert client.get(f"{PREFIX}file_bytes") == b"700000"


def test_a_file_is_not_visible_to_other_keys(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=",".join(KEYS))
    with tenant_clients(stack) as (alice, bob):
        stored = upload(alice, b"mine").json()
        path = f"/v1/files/{stored['id']}"
        for response in (bob.get(path), bob.get(f"{path}/content"), bob.delete(path)):
            assert response.status_code == 404
        assert bob.get("/v1/files").json()["data"] == []
        assert alice.get(f"{path}/content").content == b"mine"


def test_a_file_can_be_read_from_another_server(stack: Stack, serve: Serve) -> None:
    stored = upload(stack.http, b"shared").json()
    url = stack.server.services.settings.redis_url.get_secret_value()
    other = serve(redis_url=url, auth=False)
    response = httpx2.get(f"{other.url}/v1/files/{stored['id']}/content", timeout=scaled(30))
    assert response.content == b"shared"
