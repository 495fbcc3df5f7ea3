"""API keys in Redis: made and revoked while controllers run, each with limits that all controllers share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import anthropic
import httpx2
import pytest
from llava_server.middleware.auth import key_digest, tenant_of
from llava_server.settings import load_settings

from tests.machine_speed import scaled
from tests.server.conftest import Serve, Stack
from tests.server.middleware.test_door import announce_again
from tests.server.scripted_worker import MODEL, ScriptedWorker
from tests.waiting import wait_until

OwnStack = Callable[..., Stack]


class Ring:
    """The command line on one queue."""

    def __init__(self, url: str) -> None:
        self._url = url

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llava_server.operator.cli.api_keys", *words],
            env={**os.environ, "LLAVA_REDIS_URL": self._url},
            capture_output=True,
            text=True,
            check=False,
        )

    def create(self, *words: str) -> str:
        made = self.run("create", "test", *words)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()


@pytest.fixture
def ring(queue_url: str) -> Ring:
    return Ring(queue_url)


def ask(url: str, key: str, content: str = "say yes", **fields: Any) -> httpx2.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=scaled(60))


def test_a_server_asks_for_keys_unless_told_otherwise(
    own_stack: OwnStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVA_AUTH")
    assert load_settings(()).auth
    assert not load_settings(("--no-auth",)).auth
    stack = own_stack(auth=True)
    assert stack.chat().status_code == 401
    assert stack.http.get("/readyz").status_code == 200


def test_a_new_key_works_on_a_running_server_and_a_revoked_one_does_not(
    own_stack: OwnStack, ring: Ring
) -> None:
    stack = own_stack(auth=True)
    key = ring.create()
    assert ask(stack.server.url, key).status_code == 200
    assert ask(stack.server.url, key[:-1]).status_code == 401
    assert ring.run("revoke", tenant_of(key_digest(key))).returncode == 0
    wait_until(lambda: ask(stack.server.url, key).status_code == 401)


def test_a_key_is_shown_once_and_is_nowhere_in_redis(
    own_stack: OwnStack, ring: Ring, valkey_socket: Any, queue_url: str
) -> None:
    import redis

    stack = own_stack(auth=True)
    key = ring.create("--tokens-per-min", "1000")
    assert re.fullmatch(r"lv-[\w-]{43}", key)
    assert ask(stack.server.url, key).status_code == 200
    listed = ring.run("list", "--json").stdout
    assert f'"id": "{tenant_of(key_digest(key))}"' in listed
    assert '"tokens_per_min": 1000' in listed
    client = redis.Redis.from_url(queue_url)
    everything = b"".join(client.dump(name) or b"" for name in client.scan_iter())
    assert key_digest(key).encode() in everything
    assert key.encode() not in everything
    assert key not in listed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("create", "bell\a"), "printable"),
        (("revoke", "abc"), "too short"),
        (("revoke", "0123456789abcdef"), "0 keys have the id"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(ring: Ring, words: tuple[str, ...], complaint: str) -> None:
    result = ring.run(*words)
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_requests_a_minute_are_shared_by_all_controllers_and_told_in_headers(
    own_stack: OwnStack, ring: Ring, serve: Serve
) -> None:
    here, there = own_stack(auth=True).server, serve(auth=True)
    key, other = ring.create("--requests-per-min", "2"), ring.create()
    wait_until(lambda: httpx2.get(f"{there.url}/readyz").status_code == 200)
    first, second = ask(here.url, key), ask(there.url, key)
    assert (first.status_code, second.status_code) == (200, 200)
    assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second)] == ["1", "0"]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert re.fullmatch(r"(\d+m)?\d+m?s", first.headers["x-ratelimit-reset-requests"])
    assert "x-ratelimit-limit-tokens" not in first.headers
    for server in (here, there):
        refused = ask(server.url, key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    free = ask(here.url, other)
    assert free.status_code == 200
    assert not [name for name in free.headers if name.startswith("x-ratelimit")]


def test_tokens_are_taken_by_estimate_and_settled_by_what_was_used(own_stack: OwnStack, ring: Ring) -> None:
    stack = own_stack(auth=True)
    key = ring.create("--tokens-per-min", "1000")
    response = ask(stack.server.url, key, max_tokens=900)
    assert response.status_code == 200
    used = response.json()["usage"]["total_tokens"]
    again = ask(stack.server.url, key, max_tokens=900)  # would not fit beside the first one's estimate
    assert again.status_code == 200
    left = int(again.headers["x-ratelimit-remaining-tokens"])
    assert left >= 1000 - 2 * used - 1
    long = ask(stack.server.url, key, max_tokens=4000)
    assert (long.status_code, long.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "1000 tokens a minute" in long.json()["error"]["message"]


def test_a_keys_own_limit_of_jobs_leaves_another_key_alone(own_stack: OwnStack, ring: Ring) -> None:
    stack = own_stack(auth=True)
    key, other = ring.create("--max-jobs", "1"), ring.create()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(ask, stack.server.url, key, "hold")
        wait_until(lambda: stack.worker.assignments)
        refused = ask(stack.server.url, key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "the limit is 1" in refused.json()["error"]["message"]
        assert ask(stack.server.url, other).status_code == 200
        stack.worker.release.set()
        assert held.result().status_code == 200


def served(stack: Stack, *crowds: tuple[str, str, int]) -> list[str]:
    """What is said, in the order of service, where crowds of (key, word, number) came one after another."""
    stack.worker.stop()
    announce_again(stack)
    controller = stack.server.services.controller
    with ThreadPoolExecutor(64) as pool:
        waiting: list[Future[httpx2.Response]] = []
        for key, word, number in crowds:
            waiting += [pool.submit(ask, stack.server.url, key, f"say {word}") for _ in range(number)]
            total = len(waiting)
            wait_until(partial(lambda total: controller.num_open == total, total))
        stack.worker = ScriptedWorker(stack.worker._url).start()
        assert {answer.result().status_code for answer in waiting} == {200}
    texts = [str(each.job.messages[0].parts[0]) for each in stack.worker.assignments]
    return [text.removeprefix("say ") for text in texts]


def order_of_service(stack: Stack, flooding: str, asking: str) -> int:
    """How many of 30 waiting requests of one key are served before one that comes after them."""
    return served(stack, (flooding, "flood", 30), (asking, "late", 1)).index("late")


def test_a_flood_of_one_key_is_passed_by_the_next_request_of_another(own_stack: OwnStack, ring: Ring) -> None:
    assert order_of_service(own_stack(auth=True), ring.create(), ring.create()) <= 1


def test_within_one_key_who_came_first_is_served_first(own_stack: OwnStack, ring: Ring) -> None:
    key = ring.create()
    assert order_of_service(own_stack(auth=True), key, key) == 30


def test_a_keys_priority_travels_with_its_jobs(own_stack: OwnStack, ring: Ring) -> None:
    stack = own_stack(auth=True)
    for key in (ring.create(), ring.create("--priority", "1"), ring.create("--priority", "-1")):
        assert ask(stack.server.url, key, max_tokens=10).status_code == 200
    assert [assignment.job.priority for assignment in stack.worker.assignments] == [0, 1, -1]


@pytest.mark.parametrize(("weight", "most", "least"), [("4", 9, 7), ("1", 6, 4)])
def test_a_keys_weight_is_its_share_of_what_is_served(
    own_stack: OwnStack, ring: Ring, weight: str, most: int, least: int
) -> None:
    light, heavy = ring.create(), ring.create("--weight", weight)
    order = served(own_stack(auth=True), (light, "light", 20), (heavy, "heavy", 20))
    assert least <= order[:10].count("heavy") <= most


def test_keys_known_so_far_go_on_working_without_the_ring(own_stack: OwnStack, ring: Ring) -> None:
    stack = own_stack(auth=True)
    key = ring.create()
    assert ask(stack.server.url, key).status_code == 200
    keys = stack.server.services.api_keys
    keys.attach(type(keys._store)("unix:///nowhere/s"))
    headers = {"authorization": f"Bearer {key}"}
    assert httpx2.get(f"{stack.server.url}/v1/models", headers=headers, timeout=scaled(30)).status_code == 200
    headers = {"authorization": "Bearer unknown"}
    assert httpx2.get(f"{stack.server.url}/v1/models", headers=headers, timeout=scaled(30)).status_code == 401


def test_the_key_of_anthropics_client_opens_a_server_that_asks_for_one(own_stack: OwnStack) -> None:
    said: list[Any] = [{"role": "user", "content": "say yes"}]
    url = own_stack(api_keys="key-of-claude").server.url
    with anthropic.Anthropic(base_url=url, api_key="key-of-claude", max_retries=0) as client:
        message = client.messages.create(model=MODEL, max_tokens=9, messages=said)
        assert message.content[0].type == "text" and message.content[0].text == "yes"
        assert client.messages.count_tokens(model=MODEL, messages=said).input_tokens > 0
    with (
        anthropic.Anthropic(base_url=url, api_key="key-of-nobody", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError, match="x-api-key"),
    ):
        client.messages.create(model=MODEL, max_tokens=9, messages=said)
