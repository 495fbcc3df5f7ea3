"""Tests that the playground handles errors and is not vulnerable to HTML injection."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.e2e.playground.conftest import KEY
from tests.e2e.playground.page_actions import (
    ask,
    copied,
    drop,
    drop_image,
    finished,
    response_text,
    scene,
    scripted,
    sent,
)
from tests.machine_speed import scaled
from tests.processes import ControllerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

CHAT = "**/v1/chat/completions"
EVIL = [
    "<img src=x onerror=",
    "'window.pwned=1'>",
    "<script>window.pwned=1</script>",
    " [x](javascript:alert(1))",
]


@pytest.fixture
def playground(page: Page, site: ControllerProcess) -> Page:
    page.goto(site.url)
    return page


def test_html_from_the_model_is_shown_as_text(playground: Page) -> None:
    scripted(playground, *EVIL)
    ask(playground, "Be evil.")
    assert finished(playground) == "".join(EVIL)
    expect(response_text(playground).locator("p *")).to_have_count(0)
    assert playground.evaluate("window.pwned") is None


def test_html_from_all_other_sources_is_shown_as_text(playground: Page) -> None:
    evil = "<img src=x onerror='window.pwned=1'>"
    models = json.dumps({"object": "list", "data": [{"id": evil}]})
    playground.route(
        "**/v1/models", lambda route: route.fulfill(content_type="application/json", body=models)
    )
    error = json.dumps({"error": {"message": evil}})
    playground.route(
        CHAT, lambda route: route.fulfill(status=400, content_type="application/json", body=error)
    )
    playground.reload()
    drop_image(playground, f"{evil}.png")
    drop(playground, (f"{evil}.txt", "text/plain", b"x"))
    expect(playground.locator("#notice")).to_contain_text(evil)
    ask(playground, evil)
    expect(playground.locator(".question-text")).to_have_text(evil)
    expect(playground.locator(".failure p")).to_have_text(f"{evil}.")
    expect(playground.locator("#model option")).to_have_text(evil)
    expect(playground.locator("img[src=x]")).to_have_count(0)
    assert playground.evaluate("window.pwned") is None


def test_an_error_is_shown_as_a_sentence_and_the_request_can_be_retried(playground: Page) -> None:
    def reject(route: Route) -> None:
        body = json.dumps({"error": {"message": "the queue is full", "code": "queue_full"}})
        route.fulfill(status=503, headers={"Retry-After": "7"}, content_type="application/json", body=body)

    playground.route(CHAT, reject)
    ask(playground, "Hello?")
    expect(playground.get_by_role("alert")).to_contain_text("The queue is full. Try again in 7 seconds.")
    playground.unroute(CHAT)
    playground.get_by_role("button", name="Try again").click()
    assert finished(playground)
    expect(playground.locator(".failure")).to_have_count(0)


def test_a_rejection_by_the_worker_is_shown_and_the_next_request_succeeds(playground: Page) -> None:
    ask(playground, "[[refuse]]")
    expect(playground.get_by_role("alert")).to_contain_text(
        "The prompt instructed the echo model to reject it"
    )
    with playground.expect_request(CHAT) as request:
        ask(playground, "Hello?")
    assert sent(request.value)["messages"] == [{"role": "user", "content": "Hello?"}]
    assert finished(playground)


def test_an_interrupted_response_is_marked_and_left_out_of_the_conversation(playground: Page) -> None:
    ask(playground, "[[error at 20]]")
    expect(playground.get_by_role("alert")).to_contain_text("The prompt instructed the echo model to fail")
    expect(response_text(playground)).to_have_text(re.compile(r"\w{3}"))
    expect(playground.locator(".facts")).to_contain_text("incomplete")
    with playground.expect_request(CHAT) as request:
        ask(playground, "Hello?")
    assert sent(request.value)["messages"] == [{"role": "user", "content": "Hello?"}]


def test_a_connection_closed_in_mid_response_is_shown_as_an_error(playground: Page) -> None:
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "half an"}}]})
    playground.route(
        CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=f"data: {chunk}\n\n")
    )
    ask(playground, "Hello?")
    expect(playground.get_by_role("alert")).to_contain_text("The server closed the connection")
    expect(response_text(playground)).to_have_text("half an")


def test_an_unreachable_server_is_reported_with_its_address(
    playground: Page, site: ControllerProcess
) -> None:
    expect(playground.get_by_label("Model")).to_be_enabled()
    playground.route(CHAT, lambda route: route.abort("connectionrefused"))
    ask(playground, "Hello?")
    expect(playground.get_by_role("alert")).to_contain_text(f"Cannot reach the server at {site.url[7:]}.")


def test_a_question_is_kept_until_a_model_is_running_and_models_appear_automatically(
    page: Page, site: ControllerProcess
) -> None:
    empty = json.dumps({"object": "list", "data": []})
    page.route("**/v1/models", lambda route: route.fulfill(content_type="application/json", body=empty))
    page.goto(site.url)
    expect(page.get_by_label("Model")).to_have_text("no model is running")
    field = page.get_by_label("Your question")
    field.fill("Hello?")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("No model is running yet.")
    expect(field).to_have_value("Hello?")
    page.unroute("**/v1/models")
    expect(page.get_by_label("Model")).to_be_enabled(timeout=scaled(10_000))
    ask(page, "Hello?")
    assert finished(page)


def test_the_key_is_requested_stored_in_the_tab_and_never_copied(
    page: Page, guarded_site: ControllerProcess
) -> None:
    page.goto(guarded_site.url)
    page.get_by_label("This server requires an API key").fill(KEY)
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_label("Model")).to_be_enabled()
    expect(page.get_by_label("This server requires an API key")).to_be_hidden()
    ask(page, "Hello?")
    assert finished(page)
    assert page.evaluate("sessionStorage['llava.key']") == KEY
    assert page.evaluate("localStorage.length") == 0
    for name, variable in (
        ("Copy as curl", "$LLAVA_API_KEY"),
        ("Copy as Python", 'os.environ["LLAVA_API_KEY"]'),
    ):
        text = copied(page, name)
        assert variable in text
        assert KEY not in text


def test_the_key_is_requested_again_if_it_is_wrong(page: Page, guarded_site: ControllerProcess) -> None:
    page.goto(guarded_site.url)
    field = page.get_by_label("This server requires an API key")
    expect(field).to_be_focused()
    field.fill("wrong-key")
    with page.expect_response("**/v1/models") as response:
        page.get_by_role("button", name="Use key").click()
    assert response.value.status == 401
    expect(field).to_be_visible()
    expect(field).to_have_value("")


def test_a_server_without_authentication_requests_no_key(playground: Page) -> None:
    expect(playground.get_by_label("Model")).to_be_enabled()
    expect(playground.get_by_label("This server requires an API key")).to_be_hidden()


def test_an_image_opens_in_full_size_and_closes(playground: Page) -> None:
    drop_image(playground, "scene.png", scene())
    ask(playground, "What is this?")
    playground.get_by_role("button", name="scene.png, 64 × 48").click()
    expect(playground.get_by_role("dialog", name="Image")).to_be_visible()
    playground.get_by_role("button", name="Close the image").click()
    expect(playground.get_by_role("dialog", name="Image")).to_be_hidden()
