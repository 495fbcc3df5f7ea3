"""Pictures by URL: only listed hosts, only public addresses, and nothing that turns one into the other."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from llava_server.images.fetch import FetchRules, ImageFetcher

from tests.security.picture_hosts import (
    NAME,
    PUBLIC,
    Names,
    Network,
    PictureHost,
    Route,
    answer,
    fetch,
    found,
    moved,
    trusting,
)
from tests.server.conftest import Stack
from tests.server.image_files import encoded, part, scene
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

PICTURE = b"the bytes of a picture"
INNER = "169.254.169.254"


async def test_a_picture_of_a_listed_host_is_fetched_by_its_number_under_its_name() -> None:
    done = await fetch(f"https://{NAME}/a.png?size=1", {"/a.png?size=1": found(PICTURE)})
    assert done.result == PICTURE
    assert (done.dialled, done.ports, done.names.num_lookups) == ([PUBLIC], [443], 1)
    assert done.host.server_names == [NAME]
    assert f"host: {NAME}\r\n" in done.host.requests[0].lower()
    assert "authorization" not in done.host.requests[0].lower()


async def test_nothing_is_fetched_unless_a_host_is_listed() -> None:
    done = await fetch(f"https://{NAME}/a.png", {"/a.png": found(PICTURE)}, hosts=frozenset())
    assert "off by default" in str(done.result)
    assert (done.dialled, done.names.num_lookups) == ([], 0)


@pytest.mark.parametrize(
    ("rule", "url", "is_taken"),
    [
        (NAME, f"https://{NAME}:8443/a", False),
        (f"{NAME}:8443", f"https://{NAME}:8443/a", True),
        (f"{NAME}:8443", f"https://{NAME}/a", False),
        ("*.example", f"https://{NAME}/a", True),
        ("*.pictures.example", f"https://{NAME}/a", False),
        ("pictures.example", "https://notpictures.example/a", False),
        ("pictures.example", "https://pictures.example.evil.test/a", False),
        ("*.example:8443", f"https://{NAME}:8443/a", True),
        (NAME, f"https://{NAME.upper()}/a", True),
    ],
)
async def test_a_rule_names_host_and_port(rule: str, url: str, is_taken: bool) -> None:
    done = await fetch(url, {"/a": found(PICTURE)}, hosts=frozenset({rule}))
    assert (done.result == PICTURE) == is_taken
    assert bool(done.dialled) == is_taken


@pytest.mark.parametrize("answers", [[[PUBLIC, "127.0.0.1"]], [["::1", PUBLIC]], [[]]])
async def test_a_mixed_answer_of_the_resolver_is_refused_whole(answers: list[list[str]]) -> None:
    done = await fetch(f"https://{NAME}/a", {"/a": found(PICTURE)}, names=Names(pictures_example=answers))
    assert done.dialled == []


async def test_a_name_that_changes_its_address_is_dialled_where_it_was_checked() -> None:
    names = Names(pictures_example=[[PUBLIC], ["127.0.0.1"]])
    done = await fetch(f"https://{NAME}/a", {"/a": found(PICTURE)}, names=names)
    assert (done.result, done.dialled, names.num_lookups) == (PICTURE, [PUBLIC], 1)


async def test_a_name_that_changes_its_address_between_two_hops_is_checked_again() -> None:
    names = Names(pictures_example=[[PUBLIC], ["127.0.0.1"]])
    done = await fetch(f"https://{NAME}/a", {"/a": moved("/b"), "/b": found(PICTURE)}, names=names)
    assert isinstance(done.result, str)
    assert (done.dialled, len(done.host.requests)) == ([PUBLIC], 1)


async def test_a_redirect_within_the_rules_is_followed() -> None:
    routes: dict[str, Route] = {"/a": moved("https://cdn.pictures.example/b?c"), "/b?c": found(PICTURE)}
    done = await fetch(f"https://{NAME}/a", routes)
    assert (done.result, done.dialled) == (PICTURE, [PUBLIC] * 2)
    assert done.host.server_names == [NAME, "cdn.pictures.example"]


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1/b",
        f"https://{INNER}/latest/meta-data/",
        "https://[::1]/b",
        "https://evil.test/b",
        "//evil.test/b",
        f"http://{NAME}/b",
        f"https://user@{NAME}/b",
        f"https://{NAME}\\@127.0.0.1/b",
        "https://[/b",
        "file:///etc/passwd",
    ],
)
async def test_a_redirect_out_of_the_rules_is_not_followed(location: str) -> None:
    done = await fetch(f"https://{NAME}/a", {"/a": moved(location), "/b": found(PICTURE)}, allow_http=True)
    assert isinstance(done.result, str)
    assert {head.split(" ")[1] for head in done.host.requests} == {"/a"}
    assert done.dialled == [PUBLIC]


async def test_three_redirects_are_followed_and_four_are_not() -> None:
    routes: dict[str, Route] = {f"/{n}": moved(f"/{n + 1}") for n in range(4)}
    routes["/4"] = found(PICTURE)
    assert (await fetch(f"https://{NAME}/1", routes)).result == PICTURE
    done = await fetch(f"https://{NAME}/0", routes)
    assert "more than 3 times" in str(done.result)
    assert len(done.host.requests) == 4


async def test_plain_http_needs_to_be_allowed() -> None:
    url = f"http://{NAME}/a"
    refused = await fetch(url, {"/a": found(PICTURE)}, is_tls=False)
    assert ("https:// only" in str(refused.result), refused.dialled) == (True, [])
    allowed = await fetch(url, {"/a": found(PICTURE)}, is_tls=False, allow_http=True)
    assert (allowed.result, allowed.ports) == (PICTURE, [80])


async def test_a_certificate_of_another_name_or_of_nobody_is_refused() -> None:
    other = await fetch("https://a.wild.example/a", {"/a": found(PICTURE)})
    nobody = await fetch(f"https://{NAME}/a", {"/a": found(PICTURE)}, tls=ssl.create_default_context())
    assert [other.host.requests, nobody.host.requests] == [[], []]
    assert isinstance(other.result, str) and isinstance(nobody.result, str)


async def test_a_body_over_the_limit_is_given_up_whatever_its_header_says() -> None:
    flood: list[bytes] = [answer(200), *[bytes(65536)] * 4096]
    done = await fetch(f"https://{NAME}/a", {"/a": flood}, max_bytes=100_000)
    assert "the limit" in str(done.result)
    assert done.host.num_sent_bytes < 64 * 2**20
    lying: dict[str, Route] = {"/a": answer(200, content_length="100001")}
    announced = await fetch(f"https://{NAME}/a", lying, max_bytes=100_000)
    assert "the limit" in str(announced.result)
    just = await fetch(f"https://{NAME}/a", {"/a": found(bytes(100_000))}, max_bytes=100_000)
    assert just.result == bytes(100_000)


async def test_a_host_that_never_finishes_is_given_up() -> None:
    done = await fetch(f"https://{NAME}/a", {"/a": [answer(200, content_length="10"), b"x"]}, timeout_s=0.3)
    assert "did not arrive" in str(done.result)


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
async def test_only_a_200_is_a_picture(status: int) -> None:
    done = await fetch(f"https://{NAME}/a", {"/a": answer(status, content_length="0")})
    assert str(status) in str(done.result)


async def test_a_host_that_breaks_off_is_refused_without_its_words() -> None:
    broken: dict[str, Route] = {"/a": b"secret words instead of HTTP\r\n\r\n"}
    done = await fetch(f"https://{NAME}/a", broken)
    assert "broke off" in str(done.result)
    assert "secret" not in str(done.result)


def test_a_server_as_it_comes_reaches_out_to_nobody(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack()
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.setblocking(False)
        port = inner.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0", "127.1"):
            response = stack.chat([part(f"http://{host}:{port}/"), {"type": "text", "text": "look"}])
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "invalid_image_url")
            assert error["param"] == "messages[0].content[0].image_url.url"
        with pytest.raises(BlockingIOError):
            inner.accept()


def test_a_fetched_picture_is_answered_like_one_that_was_sent(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(image_hosts=NAME, image_allow_http=True)
    picture = encoded(scene(60, 30))

    async def ask() -> Any:
        async with PictureHost({"/a.png": found(picture)}) as host:
            intake = stack.server.services.image_loader
            intake._fetcher = ImageFetcher(
                FetchRules(frozenset({NAME})), resolver=Names(), network=Network(host), tls=trusting()
            )
            content = [part(f"https://{NAME}/a.png"), {"type": "text", "text": "look"}]
            return await asyncio.to_thread(stack.chat, content)

    assert asyncio.run(ask()).status_code == 200
    sent = stack.chat([part(picture), {"type": "text", "text": "look"}])
    assert sent.status_code == 200
    by_url, by_value = (assignment.job.images[0] for assignment in stack.worker.assignments)
    assert by_url == by_value


def test_a_url_is_in_no_log(own_stack: Callable[..., Stack], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    stack = own_stack(image_hosts=NAME)
    stack.chat([part("https://evil.test/canary-in-the-url?key=canary"), {"type": "text", "text": "look"}])

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("llava_")]

    wait_until(lambda: any("error=invalid_image_url" in line for line in lines()))  # behind the answer
    assert not [line for line in lines() if "canary" in line]
