"""Images in files: uploaded with OpenAI's client and used by ``file_id`` in chat and in responses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
import redis
from llava_wire.redis.keys import PREFIX

from tests.machine_speed import scaled
from tests.server.batch_requests import KEYS, tenant_clients, upload
from tests.server.conftest import OwnStack, Serve, Stack
from tests.server.image_files import data_url, encoded, part, scene
from tests.server.scripted_worker import MODEL

PNG = encoded(scene())


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat_body(file: dict[str, Any], text: str = "say yes") -> dict[str, Any]:
    content = [{"type": "file", "file": file}, {"type": "text", "text": text}]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]}


def response_body(**image: Any) -> dict[str, Any]:
    content = [{"type": "input_image", **image}, {"type": "input_text", "text": "say yes"}]
    return {"model": MODEL, "input": [{"role": "user", "content": content}]}


@pytest.mark.parametrize("purpose", ["vision", "user_data", "assistants"])
def test_an_image_file_equals_the_same_image_as_a_url(
    client: openai.OpenAI, stack: Stack, purpose: Any
) -> None:
    file = client.files.create(file=("a.png", io.BytesIO(PNG)), purpose=purpose)
    assert (file.purpose, file.filename, file.bytes) == (purpose, "a.png", len(PNG))
    stack.chat([part(PNG), {"type": "text", "text": "say yes"}])
    bodies = [
        ("/v1/chat/completions", chat_body({"file_id": file.id})),
        ("/v1/chat/completions", chat_body({"file_data": data_url(PNG), "filename": "a.png"})),
        ("/v1/responses", response_body(file_id=file.id)),
        ("/v1/responses", response_body(image_url=data_url(PNG))),
    ]
    for path, body in bodies:
        response = stack.http.post(path, json=body)
        assert response.status_code == 200, response.text
    images = {assignment.job.images for assignment in stack.worker.assignments}
    assert len(stack.worker.assignments) == 5 and len(images) == 1


def test_a_file_can_be_used_in_a_conversation_that_is_continued(client: openai.OpenAI, stack: Stack) -> None:
    file = client.files.create(file=("a.png", PNG), purpose="vision")
    first = stack.http.post("/v1/responses", json=response_body(file_id=file.id)).json()["id"]
    second = {"model": MODEL, "input": "say two", "previous_response_id": first}
    assert stack.http.post("/v1/responses", json=second).status_code == 200
    assert len(stack.worker.assignments[-1].job.images) == 1
    [item] = stack.http.get(f"/v1/responses/{first}/input_items").json()["data"]
    assert item["content"][0]["file_id"] == file.id
    client.files.delete(file.id)
    response = stack.http.post("/v1/responses", json=second)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "file_not_found")
    assert file.id in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "previous_response_id"


def test_a_missing_or_foreign_file_is_an_error_that_names_the_field(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=",".join(KEYS))
    with tenant_clients(stack) as (alice, bob):
        file_id = upload(alice, PNG, purpose="vision").json()["id"]
        public = {"cache_scope": "public"}
        for http, name, status in ((alice, file_id, 200), (bob, file_id, 404), (alice, "file-x", 404)):
            for fields in ({}, public):
                response = http.post("/v1/chat/completions", json={**chat_body({"file_id": name}), **fields})
                assert response.status_code == status, response.text
            if status == 404:
                error = response.json()["error"]
                assert (error["code"], error["param"]) == (
                    "file_not_found",
                    "messages[0].content[0].file.file_id",
                )
                assert name in error["message"]
                assert http.post("/v1/responses", json=response_body(file_id=name)).status_code == 404


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{}", "invalid_image"),
        (PNG[:60], "invalid_image"),
        (b"", "invalid_image"),
        (b"x" * 2**20, "image_too_large"),
    ],
)
def test_a_file_that_is_not_an_image_is_rejected(own_stack: OwnStack, data: bytes, code: str) -> None:
    stack = own_stack(max_image_mb=1)
    if code == "image_too_large":
        data += b"x"
    file_id = upload(stack.http, data, purpose="user_data").json()["id"]
    response = stack.http.post("/v1/chat/completions", json=chat_body({"file_id": file_id}))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, code), error
    assert error["param"] == "messages[0].content[0].file.file_id"
    assert stack.works()


@pytest.mark.parametrize(
    ("file", "param"),
    [
        ({}, "messages[0].content[0].file.file_id"),
        ({"file_id": "a", "file_data": data_url(PNG)}, "messages[0].content[0].file.file_id"),
        ({"file_id": ""}, "messages[0].content[0].file.file_id"),
        ({"file_data": "data:application/pdf;base64,AAAA"}, "messages[0].content[0].file.file_data"),
        ({"file_data": "AAAA"}, "messages[0].content[0].file.file_data"),
    ],
)
def test_an_invalid_file_part_is_an_error_that_names_the_field(
    stack: Stack, file: dict[str, Any], param: str
) -> None:
    response = stack.http.post("/v1/chat/completions", json=chat_body(file))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_an_image_needs_either_a_url_or_a_file(stack: Stack) -> None:
    for image in ({}, {"file_id": "a", "image_url": data_url(PNG)}):
        error = stack.http.post("/v1/responses", json=response_body(**image)).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "input[0].content[0].image_url")


def test_files_count_toward_the_number_of_images(stack: Stack) -> None:
    file_id = upload(stack.http, PNG, purpose="vision").json()["id"]
    content = [{"type": "file", "file": {"file_id": file_id}}] * 9
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    assert stack.http.post("/v1/chat/completions", json=body).json()["error"]["code"] == "too_many_images"


def test_a_low_detail_file_is_encoded_as_one_tile(client: openai.OpenAI, stack: Stack) -> None:
    file_id = upload(stack.http, PNG, purpose="vision").json()["id"]
    for body in (chat_body({"file_id": file_id, "detail": "low"}), chat_body({"file_id": file_id})):
        assert stack.http.post("/v1/chat/completions", json=body).status_code == 200
        assert stack.worker.assignments[-1].job.images[0].num_tiles == 1


def test_a_file_expires_as_requested(client: openai.OpenAI, stack: Stack) -> None:
    def lifetime(seconds: int) -> int:
        file = client.files.create(
            file=("a.png", PNG), purpose="vision", expires_after={"anchor": "created_at", "seconds": seconds}
        )
        assert file.expires_at is not None
        return file.expires_at - file.created_at

    assert lifetime(3600) == pytest.approx(3600, abs=5)
    assert lifetime(2_592_000) == pytest.approx(7 * 86400, abs=5)  # the server's limit is shorter


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "x"}, "expires_after[seconds]"),
    ],
)
def test_an_invalid_expiry_is_an_error_that_names_the_field(
    stack: Stack, fields: dict[str, str], param: str
) -> None:
    response = upload(stack.http, PNG, purpose="vision", **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_an_expired_file_cannot_be_used(stack: Stack) -> None:
    file_id = upload(stack.http, PNG, purpose="vision").json()["id"]
    url = stack.server.services.settings.redis_url.get_secret_value()
    with redis.Redis.from_url(url) as queue:
        assert queue.delete(f"{PREFIX}file:{file_id}", f"{PREFIX}bytes:{file_id}") == 2
    response = stack.http.post("/v1/chat/completions", json=chat_body({"file_id": file_id}))
    assert response.json()["error"]["code"] == "file_not_found"


def test_another_server_reads_the_file(stack: Stack, serve: Serve) -> None:
    file_id = upload(stack.http, PNG, purpose="vision").json()["id"]
    url = stack.server.services.settings.redis_url.get_secret_value()
    other = serve(redis_url=url, auth=False)
    with httpx2.Client(base_url=other.url, timeout=scaled(60)) as http:
        assert http.post("/v1/chat/completions", json=chat_body({"file_id": file_id})).status_code == 200


def test_files_are_paged_in_both_orders(own_stack: OwnStack) -> None:
    stack = own_stack()
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        ids = {upload(stack.http, PNG, purpose="vision").json()["id"] for _ in range(5)}
        batch = upload(stack.http, b"{}").json()["id"]
        newest_first = [each.id for each in client.files.list(purpose="vision", limit=2)]
        assert set(newest_first) == ids and len(newest_first) == 5
        assert [each.id for each in client.files.list(purpose="vision", order="asc")] == newest_first[::-1]
        page = client.files.list(limit=2, after=newest_first[1], purpose="vision")
        assert ([each.id for each in page.data], page.has_more) == (newest_first[2:4], True)
        assert batch in {each.id for each in client.files.list()}
        response = stack.http.get("/v1/files", params={"after": "file-x"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "after")
