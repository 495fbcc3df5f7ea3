"""An API key that stores as much as it can in Redis does not affect the text requests of other keys."""

from __future__ import annotations

import base64
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from llava_cli.up.redis_process import find_redis_binary
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.redis.keys import PREFIX
from PIL import Image

from tests.server.batch_requests import KEYS, tenant_clients, upload
from tests.server.conftest import Stack, running_stack, text_of
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until
from tests.wire.redis_server import RedisServer

MAX_MEMORY = 48 << 20
SPEC = ImageSpec(side=336, tokens_per_tile=4)
TEXT = "x" * 900_000
BUDGETS = {"job": "jobs", "pixel": "images", "file": "files", "response": "stored_responses"}
_colors = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis server with little memory."""
    with tempfile.TemporaryDirectory(prefix="lv", dir="/tmp") as folder:  # a socket needs a short path
        server = RedisServer(find_redis_binary(), Path(folder), options=f"--maxmemory {MAX_MEMORY}")
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="module")
def stack(server: RedisServer) -> Iterator[Stack]:
    with running_stack(server.url, spec=SPEC, api_keys=",".join(KEYS)) as stack:
        yield stack


def used_memory(server: RedisServer) -> int:
    return int(server.client.info("memory")["used_memory"])


def counted(server: RedisServer, kind: str) -> int:
    return int(server.client.get(f"{PREFIX}{kind}_bytes") or 0)


def background(http: httpx2.Client, *parts: Any, **fields: Any) -> httpx2.Response:
    messages = [{"role": "user", "content": part} for part in parts]
    body = {"model": MODEL, "background": True, "input": messages, **fields}
    return http.post("/v1/responses", json=body)


def large_instructions(http: httpx2.Client) -> httpx2.Response:
    return background(http, "say yes", instructions=TEXT)


def large_prompt(http: httpx2.Client) -> httpx2.Response:
    return background(http, TEXT, "hold")


def stored_chat(http: httpx2.Client) -> httpx2.Response:
    messages = [{"role": "user", "content": text} for text in (TEXT, "say yes")]
    return http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "store": True})


def many_logprobs(http: httpx2.Client) -> httpx2.Response:
    """Request a response whose log can become large."""
    messages = [{"role": "user", "content": "hold"}]
    body = {"model": MODEL, "input": messages, "background": True, "max_output_tokens": 1000}
    logprobs = {"top_logprobs": 20, "include": ["message.output_text.logprobs"]}
    return http.post("/v1/responses", json=body | logprobs)


def file(http: httpx2.Client) -> httpx2.Response:
    return upload(http, b"x" * (1 << 20))


def images(http: httpx2.Client) -> httpx2.Response:
    parts: list[dict[str, str]] = []
    for _ in range(8):
        data = io.BytesIO()
        number = next(_colors)
        Image.new("RGB", (336, 336), (number % 256, number // 256, 0)).save(data, "BMP")
        url = f"data:image/bmp;base64,{base64.b64encode(data.getvalue()).decode()}"
        parts.append({"type": "input_image", "image_url": url})
    return background(http, parts, "hold")


def expire_all(server: RedisServer) -> None:
    """Let everything that clients have stored expire now."""
    for key in server.client.scan_iter(f"{PREFIX}*", count=1000):
        kind = key.decode().removeprefix(PREFIX).partition(":")[0]
        if kind in ("job", "log", "blob", "users", "file", "bytes", "response", "input", "output"):
            server.client.pexpire(key, 1)
        elif kind in ("jobs", "pixels", "files", "responses"):
            entries: Any = server.client.zrange(key, 0, -1)
            for entry in entries:
                server.client.zadd(key, {entry: 1})


def is_released(server: RedisServer, before: int) -> bool:
    """Let all data expire, and return whether the counters and the memory are back at their initial level."""
    expire_all(server)
    # The event stream of the controller has its own limit (tests/wire/redis/test_budgets.py).
    streams = [
        server.client.memory_usage(key, samples=0) or 0 for key in server.client.keys(f"{PREFIX}out:*")
    ]
    used = used_memory(server) - sum(streams)
    return not any(counted(server, each) for each in BUDGETS) and used < before + (4 << 20)


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        (large_instructions, "job"),
        (large_prompt, "job"),
        (many_logprobs, "job"),
        (stored_chat, "response"),
        (file, "file"),
        (images, "pixel"),
    ],
)
def test_a_key_that_fills_its_share_of_redis_does_not_affect_the_text_requests_of_others(
    stack: Stack, server: RedisServer, attack: Callable[[httpx2.Client], httpx2.Response], kind: str
) -> None:
    stack.worker.release.clear()
    before = used_memory(server)
    statuses: list[int] = []
    with tenant_clients(stack) as (attacker, victim):
        for number in range(64):
            response = attack(attacker)
            statuses.append(response.status_code)
            if response.status_code != 200:
                assert response.status_code == 429, response.text
                assert "Retry-After" in response.headers
                assert "bytes" in json.dumps(response.json())
            if number % 4 == 0 or response.status_code != 200:
                reply = victim.post(
                    "/v1/chat/completions",
                    json={"model": MODEL, "messages": [{"role": "user", "content": "say fine"}]},
                )
                assert (reply.status_code, text_of(reply)) == (200, "fine")
            assert used_memory(server) < MAX_MEMORY
            if statuses.count(429) == 3:
                break
        budget = stack.server.metric("llava_redis_budget_bytes", data=BUDGETS[kind])
        assert budget
        assert counted(server, kind) <= budget * 0.55  # one key uses at most half; the other key needs little
        if attack is not stored_chat:  # the oldest stored responses make room for new ones
            assert statuses.count(429) == 3
        assert statuses.count(200) >= 2
    stack.worker.release.set()
    wait_until(lambda: not server.client.keys(f"{PREFIX}tenant:*"), "the end of all jobs")
    wait_until(lambda: is_released(server, before), "the memory to be released")


def test_full_budgets_of_images_and_files_leave_room_for_text(stack: Stack, server: RedisServer) -> None:
    with redis.Redis(unix_socket_path=str(server.socket)) as client, tenant_clients(stack) as (_, victim):
        for kind in ("pixel", "file", "response"):  # as if other keys had filled them
            client.set(f"{PREFIX}{kind}_bytes", MAX_MEMORY)
            client.zadd(f"{PREFIX}{kind}s", {f"other {MAX_MEMORY}": 2**53})
        response = upload(victim, b"x")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_full")
        reply = victim.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": [{"role": "user", "content": "say fine"}]},
        )
        assert text_of(reply) == "fine"
        expire_all(server)
