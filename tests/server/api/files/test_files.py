"""/v1/files: stored in pieces, read back whole, bounded, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest
import redis
from llava_wire.redis.keys import PREFIX

from tests.server.batch_kit import KEYS, content, holders, line, lines, store
from tests.server.conftest import Stack


def test_a_file_is_stored_listed_read_and_deleted(stack: Stack) -> None:
    data = lines(line("a", "say yes"))
    stored = store(stack.http, data).json()
    assert (stored["object"], stored["bytes"], stored["filename"]) == ("file", len(data), "requests.jsonl")
    assert stored["expires_at"] - stored["created_at"] == pytest.approx(7 * 86400, abs=5)
    assert stack.http.get("/v1/files").json()["data"][0] == stored
    assert stack.http.get("/v1/files?purpose=batch_output").json()["data"] == []
    assert content(stack.http, stored["id"])[0]["custom_id"] == "a"
    assert stack.http.delete(f"/v1/files/{stored['id']}").json()["deleted"] is True
    for response in (
        stack.http.get(f"/v1/files/{stored['id']}"),
        stack.http.get(f"/v1/files/{stored['id']}/content"),
        stack.http.delete(f"/v1/files/{stored['id']}"),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "file_not_found")


def test_a_file_of_several_pieces_comes_back_byte_for_byte(stack: Stack) -> None:
    data = bytes(range(256)) * 4097 * 3  # beyond three pieces, and no multiple of one
    stored = store(stack.http, data).json()
    assert stack.http.get(f"/v1/files/{stored['id']}/content").content == data


@pytest.mark.parametrize("purpose", ["fine-tune", "", "batch_output"])
def test_another_purpose_is_refused_by_name(stack: Stack, purpose: str) -> None:
    response = store(stack.http, b"{}", purpose=purpose)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "purpose")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "application/json"}, b"{}", 415),
        ({"content-type": "multipart/form-data"}, b"{}", 400),
        ({"content-type": "multipart/form-data; boundary=x"}, b"no form at all", 400),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x--\r\n", 400),
    ],
)
def test_what_is_no_form_with_a_file_is_refused(
    stack: Stack, headers: dict[str, str], body: bytes, status: int
) -> None:
    response = stack.http.post("/v1/files", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] != "internal_error"


def test_a_key_has_so_many_files_and_no_more(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(max_files=2, api_keys=",".join(KEYS))
    with holders(stack) as (alice, bob):
        first, _ = store(alice, b"1").json(), store(alice, b"2")
        refused = store(alice, b"3")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_files")
        assert store(bob, b"3").status_code == 200
        alice.delete(f"/v1/files/{first['id']}")
        assert store(alice, b"3").status_code == 200


def test_bytes_are_bounded_for_a_key_and_for_all_and_deleted_ones_count_no_more(
    own_stack: Callable[..., Stack], queue_url: str
) -> None:
    stack = own_stack(max_files_mb=1, max_all_files_mb=1, api_keys=",".join(KEYS))
    with holders(stack) as (alice, bob):
        stored = store(alice, b"x" * 700_000).json()
        assert store(alice, b"x" * 700_000).status_code == 429
        refused = store(bob, b"x" * 700_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_full")
        assert "retry-after" in refused.headers
        alice.delete(f"/v1/files/{stored['id']}")
        assert store(bob, b"x" * 700_000).status_code == 200
        with redis.Redis.from_url(queue_url) as client:
            assert client.get(f"{PREFIX}file_bytes") == b"700000"


def test_another_key_finds_nothing(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(api_keys=",".join(KEYS))
    with holders(stack) as (alice, bob):
        stored = store(alice, b"mine").json()
        path = f"/v1/files/{stored['id']}"
        for response in (bob.get(path), bob.get(f"{path}/content"), bob.delete(path)):
            assert response.status_code == 404
        assert bob.get("/v1/files").json()["data"] == []
        assert alice.get(f"{path}/content").content == b"mine"


def test_another_controller_serves_the_file(stack: Stack, serve: Callable[..., object]) -> None:
    stored = store(stack.http, b"shared").json()
    url = stack.server.services.settings.redis_url.get_secret_value()
    other = serve(redis_url=url, auth=False)
    response = httpx2.get(f"{other.url}/v1/files/{stored['id']}/content")  # type: ignore[attr-defined]
    assert response.content == b"shared"
