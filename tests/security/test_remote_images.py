"""Image URLs: the server contacts only allowed hosts and public addresses, even after redirects."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from llava_server.images.fetch import FetchRules, ImageFetcher

from tests.machine_speed import scaled
from tests.security.image_hosts import (
    HOST,
    PUBLIC_ADDRESS,
    ImageHost,
    Network,
    Resolver,
    Route,
    fetch,
    http_response,
    ok_response,
    redirect,
    trusting_context,
)
from tests.server.conftest import Stack
from tests.server.image_files import encoded, part, scene
from tests.server.image_slots import fair_slots
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

IMAGE = b"the bytes of an image"
METADATA_ADDRESS = "169.254.169.254"


async def test_an_image_is_fetched_from_the_checked_address_with_the_host_name() -> None:
    outcome = await fetch(f"https://{HOST}/a.png?size=1", {"/a.png?size=1": ok_response(IMAGE)})
    assert outcome.result == IMAGE
    assert (outcome.addresses, outcome.ports, outcome.resolver.num_lookups) == ([PUBLIC_ADDRESS], [443], 1)
    assert outcome.host.server_names == [HOST]
    assert f"host: {HOST}\r\n" in outcome.host.requests[0].lower()
    assert "authorization" not in outcome.host.requests[0].lower()


async def test_nothing_is_fetched_unless_a_host_is_allowed() -> None:
    outcome = await fetch(f"https://{HOST}/a.png", {"/a.png": ok_response(IMAGE)}, hosts=frozenset())
    assert "does not fetch remote images" in str(outcome.result)
    assert (outcome.addresses, outcome.resolver.num_lookups) == ([], 0)


@pytest.mark.parametrize(
    ("rule", "url", "is_allowed"),
    [
        (HOST, f"https://{HOST}:8443/a", False),
        (f"{HOST}:8443", f"https://{HOST}:8443/a", True),
        (f"{HOST}:8443", f"https://{HOST}/a", False),
        ("*.example", f"https://{HOST}/a", True),
        ("*.pictures.example", f"https://{HOST}/a", False),
        ("pictures.example", "https://notpictures.example/a", False),
        ("pictures.example", "https://pictures.example.evil.test/a", False),
        ("*.example:8443", f"https://{HOST}:8443/a", True),
        (HOST, f"https://{HOST.upper()}/a", True),
    ],
)
async def test_a_rule_matches_host_and_port(rule: str, url: str, is_allowed: bool) -> None:
    outcome = await fetch(url, {"/a": ok_response(IMAGE)}, hosts=frozenset({rule}))
    assert (outcome.result == IMAGE) == is_allowed
    assert bool(outcome.addresses) == is_allowed


@pytest.mark.parametrize("results", [[[PUBLIC_ADDRESS, "127.0.0.1"]], [["::1", PUBLIC_ADDRESS]], [[]]])
async def test_a_host_with_public_and_internal_addresses_is_rejected(results: list[list[str]]) -> None:
    outcome = await fetch(
        f"https://{HOST}/a", {"/a": ok_response(IMAGE)}, resolver=Resolver(pictures_example=results)
    )
    assert outcome.addresses == []


async def test_a_name_that_changes_its_address_is_contacted_at_the_checked_address() -> None:
    resolver = Resolver(pictures_example=[[PUBLIC_ADDRESS], ["127.0.0.1"]])
    outcome = await fetch(f"https://{HOST}/a", {"/a": ok_response(IMAGE)}, resolver=resolver)
    assert (outcome.result, outcome.addresses, resolver.num_lookups) == (IMAGE, [PUBLIC_ADDRESS], 1)


async def test_a_name_is_checked_again_after_a_redirect() -> None:
    resolver = Resolver(pictures_example=[[PUBLIC_ADDRESS], ["127.0.0.1"]])
    outcome = await fetch(
        f"https://{HOST}/a", {"/a": redirect("/b"), "/b": ok_response(IMAGE)}, resolver=resolver
    )
    assert isinstance(outcome.result, str)
    assert (outcome.addresses, len(outcome.host.requests)) == ([PUBLIC_ADDRESS], 1)


async def test_a_redirect_to_an_allowed_host_is_followed() -> None:
    routes: dict[str, Route] = {
        "/a": redirect("https://cdn.pictures.example/b?c"),
        "/b?c": ok_response(IMAGE),
    }
    outcome = await fetch(f"https://{HOST}/a", routes)
    assert (outcome.result, outcome.addresses) == (IMAGE, [PUBLIC_ADDRESS] * 2)
    assert outcome.host.server_names == [HOST, "cdn.pictures.example"]


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1/b",
        f"https://{METADATA_ADDRESS}/latest/meta-data/",
        "https://[::1]/b",
        "https://evil.test/b",
        "//evil.test/b",
        f"http://{HOST}/b",
        f"https://user@{HOST}/b",
        f"https://{HOST}\\@127.0.0.1/b",
        "https://[/b",
        "file:///etc/passwd",
    ],
)
async def test_a_redirect_that_violates_the_rules_is_not_followed(location: str) -> None:
    outcome = await fetch(
        f"https://{HOST}/a", {"/a": redirect(location), "/b": ok_response(IMAGE)}, allow_http=True
    )
    assert isinstance(outcome.result, str)
    assert {head.split(" ")[1] for head in outcome.host.requests} == {"/a"}
    assert outcome.addresses == [PUBLIC_ADDRESS]


async def test_three_redirects_are_followed_and_four_are_not() -> None:
    routes: dict[str, Route] = {f"/{n}": redirect(f"/{n + 1}") for n in range(4)}
    routes["/4"] = ok_response(IMAGE)
    assert (await fetch(f"https://{HOST}/1", routes)).result == IMAGE
    outcome = await fetch(f"https://{HOST}/0", routes)
    assert "more than 3 times" in str(outcome.result)
    assert len(outcome.host.requests) == 4


async def test_plain_http_must_be_enabled() -> None:
    url = f"http://{HOST}/a"
    rejected = await fetch(url, {"/a": ok_response(IMAGE)}, is_tls=False)
    assert ("Use an https:// URL" in str(rejected.result), rejected.addresses) == (True, [])
    allowed = await fetch(url, {"/a": ok_response(IMAGE)}, is_tls=False, allow_http=True)
    assert (allowed.result, allowed.ports) == (IMAGE, [80])


async def test_a_certificate_with_a_wrong_name_or_an_unknown_authority_is_rejected() -> None:
    other = await fetch("https://a.wild.example/a", {"/a": ok_response(IMAGE)})
    unknown = await fetch(f"https://{HOST}/a", {"/a": ok_response(IMAGE)}, tls=ssl.create_default_context())
    assert [other.host.requests, unknown.host.requests] == [[], []]
    assert isinstance(other.result, str) and isinstance(unknown.result, str)


async def test_a_body_above_the_limit_is_rejected_even_without_a_content_length() -> None:
    flood: list[bytes] = [http_response(200), *[bytes(65536)] * 4096]
    outcome = await fetch(f"https://{HOST}/a", {"/a": flood}, max_bytes=100_000)
    assert "exceeds the limit" in str(outcome.result)
    assert outcome.host.num_sent_bytes < 64 * 2**20
    too_long: dict[str, Route] = {"/a": http_response(200, content_length="100001")}
    announced = await fetch(f"https://{HOST}/a", too_long, max_bytes=100_000)
    assert "exceeds the limit" in str(announced.result)
    allowed = await fetch(f"https://{HOST}/a", {"/a": ok_response(bytes(100_000))}, max_bytes=100_000)
    assert allowed.result == bytes(100_000)


async def test_a_host_that_never_finishes_times_out() -> None:
    outcome = await fetch(
        f"https://{HOST}/a", {"/a": [http_response(200, content_length="10"), b"x"]}, timeout_s=scaled(0.3)
    )
    assert "could not be fetched within" in str(outcome.result)


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
async def test_only_status_200_is_accepted(status: int) -> None:
    outcome = await fetch(f"https://{HOST}/a", {"/a": http_response(status, content_length="0")})
    assert str(status) in str(outcome.result)


async def test_an_invalid_response_of_a_host_is_rejected_and_not_quoted() -> None:
    broken: dict[str, Route] = {"/a": b"secret words instead of HTTP\r\n\r\n"}
    outcome = await fetch(f"https://{HOST}/a", broken)
    assert "closed the connection" in str(outcome.result)
    assert "secret" not in str(outcome.result)


def test_a_server_with_default_settings_contacts_no_host(own_stack: Callable[..., Stack]) -> None:
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


def test_a_fetched_image_is_processed_like_an_inline_image(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(image_hosts=HOST, image_allow_http=True)
    image = encoded(scene(60, 30))

    async def send() -> Any:
        async with ImageHost({"/a.png": ok_response(image)}) as host:
            image_loader = stack.server.services.image_loader
            image_loader._fetcher = ImageFetcher(
                FetchRules(frozenset({HOST})),
                fair_slots(1),
                resolver=Resolver(),
                network=Network(host),
                tls=trusting_context(),
            )
            content = [part(f"https://{HOST}/a.png"), {"type": "text", "text": "look"}]
            return await asyncio.to_thread(stack.chat, content)

    assert asyncio.run(send()).status_code == 200
    by_value_response = stack.chat([part(image), {"type": "text", "text": "look"}])
    assert by_value_response.status_code == 200
    by_url, by_value = (assignment.job.images[0] for assignment in stack.worker.assignments)
    assert by_url == by_value


def test_image_urls_are_not_logged(own_stack: Callable[..., Stack], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    stack = own_stack(image_hosts=HOST)
    stack.chat([part("https://evil.test/canary-in-the-url?key=canary"), {"type": "text", "text": "look"}])

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("llava_")]

    wait_until(
        lambda: any("error=invalid_image_url" in line for line in lines())
    )  # the line is logged after the response
    assert not [line for line in lines() if "canary" in line]
