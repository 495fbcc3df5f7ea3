"""User interactions with the playground in a real browser, against a real server."""

from __future__ import annotations

import base64
import re

import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.e2e.playground.page_actions import (
    ask,
    drop,
    drop_image,
    finished,
    noise,
    response_text,
    scene,
    sent,
)
from tests.processes import ControllerProcess
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

CHAT = "**/v1/chat/completions"


@pytest.fixture
def playground(page: Page, site: ControllerProcess) -> Page:
    page.goto(site.url)
    return page


@pytest.fixture
def slow_playground(page: Page, slow_site: ControllerProcess) -> Page:
    page.goto(slow_site.url)
    return page


def test_a_dropped_image_is_sent_and_the_response_is_streamed(slow_playground: Page) -> None:
    drop_image(slow_playground)
    with slow_playground.expect_request(CHAT) as request:
        ask(slow_playground, "What is this?")

    image, question = sent(request.value)["messages"][0]["content"]
    assert question == {"type": "text", "text": "What is this?"}
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(scene()).decode()
    expect(slow_playground.locator(".turn .images img")).to_be_visible()

    expect(response_text(slow_playground)).to_have_text(re.compile(r"\w{3}"))
    early = response_text(slow_playground).text_content() or ""
    whole = finished(slow_playground)
    assert whole.startswith(early)
    assert len(whole) > len(early)


def test_a_finished_response_shows_its_speed_and_token_counts(slow_playground: Page) -> None:
    ask(slow_playground, "How fast are you?")
    expect(slow_playground.locator(".facts")).to_contain_text("≈")  # estimated during streaming
    finished(slow_playground)
    shown = slow_playground.locator(".facts").text_content() or ""
    assert re.search(r"first token [\d.]+ m?s", shown)
    assert re.search(r"[\d.]+ tokens/s", shown)
    assert re.search(r"\d+ tokens in · \d+ out", shown)
    assert "≈" not in shown  # once the response is complete, the page shows the server's exact numbers
    slow_playground.get_by_text("Details").click()
    expect(slow_playground.locator(".measurements")).to_contain_text(re.compile(r"Speed[\d.]+ tokens/s"))


@pytest.mark.parametrize("trigger", ["button", "Escape"])
def test_stop_cancels_the_response_and_frees_the_worker(
    slow_playground: Page, slow_site: ControllerProcess, trigger: str
) -> None:
    num_cancelled = slow_site.metric("llava_requests_cancelled_total")
    ask(slow_playground, f"Describe everything, {trigger}.")
    expect(response_text(slow_playground)).to_have_text(re.compile(r"\w{3}"))
    stop = slow_playground.get_by_role("button", name="Stop")
    stop.click() if trigger == "button" else slow_playground.keyboard.press("Escape")
    stopped = finished(slow_playground)
    expect(slow_playground.locator(".facts")).to_contain_text("stopped")
    expect(stop).to_be_hidden()

    wait_until(
        lambda: slow_site.metric("llava_requests_cancelled_total") == num_cancelled + 1,
        "the cancellation",
    )
    wait_until(
        lambda: slow_site.metric("llava_num_requests_running") == 0, "the worker to have no running requests"
    )
    assert response_text(slow_playground).text_content() == stopped
    assert len(stopped) < 40  # a complete response from the echo model has at least 64 tokens


def test_a_response_that_is_not_stopped_is_not_cancelled(playground: Page, site: ControllerProcess) -> None:
    num_cancelled = site.metric("llava_requests_cancelled_total")
    ask(playground, "Describe everything.")
    assert len(finished(playground)) >= 40
    assert site.metric("llava_requests_cancelled_total") == num_cancelled
    expect(playground.locator(".facts")).not_to_contain_text("stopped")


def test_the_second_request_includes_the_image_and_the_first_response(playground: Page) -> None:
    drop_image(playground)
    ask(playground, "What is this?")
    first = finished(playground)
    with playground.expect_request(CHAT) as request:
        ask(playground, "And what color?")
    roles = [message["role"] for message in sent(request.value)["messages"]]
    _, first_response, question = sent(request.value)["messages"]
    assert roles == ["user", "assistant", "user"]
    assert first_response["content"] == first
    assert question["content"] == "And what color?"


def test_new_chat_clears_the_conversation(playground: Page) -> None:
    drop_image(playground)
    ask(playground, "What is this?")
    expect(response_text(playground)).to_have_text(re.compile(r"\w"))
    playground.get_by_role("button", name="New chat").click()
    expect(playground.locator(".turn")).to_have_count(0)
    expect(playground.get_by_role("heading", name="Ask about an image")).to_be_visible()
    with playground.expect_request(CHAT) as request:
        ask(playground, "Hello?")
    assert sent(request.value)["messages"] == [{"role": "user", "content": "Hello?"}]


def test_images_are_selected_removed_and_sent_in_order(playground: Page) -> None:
    playground.get_by_label("Choose images").set_input_files(
        [FilePayload(name=name, mimeType="image/png", buffer=scene()) for name in ("a.png", "b.png")]
    )
    drop_image(playground, "c.png", noise(8))
    playground.get_by_role("button", name="Remove a.png").click()
    shown = playground.get_by_label("Images to send").get_by_role("img")
    assert [image.get_attribute("alt") for image in shown.all()] == ["b.png", "c.png"]
    with playground.expect_request(CHAT) as request:
        playground.get_by_role("button", name="Describe the picture in one sentence.").click()
    urls = [part["image_url"]["url"] for part in sent(request.value)["messages"][0]["content"][:-1]]
    assert [base64.b64decode(url.split(",")[1]) for url in urls] == [scene(), noise(8)]


def test_a_pasted_image_is_attached_and_pasted_text_goes_to_the_text_field(playground: Page) -> None:
    paste = """([type, content]) => {
        const clipboardData = new DataTransfer();
        const bytes = Uint8Array.from(content, (letter) => letter.charCodeAt(0));
        if (type === "text/plain") clipboardData.setData(type, content);
        else clipboardData.items.add(new File([bytes], "image.png", { type }));
        const paste = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
        return document.dispatchEvent(paste);
    }"""
    thumbnails = playground.get_by_label("Images to send").get_by_role("img")
    assert playground.evaluate(paste, ["text/plain", "a question"]) is True, "not prevented"
    expect(thumbnails).to_have_count(0)
    assert playground.evaluate(paste, ["image/png", scene().decode("latin-1")]) is False
    expect(thumbnails).to_have_count(1)


def test_the_bundled_model_recognizes_an_example_image(page: Page, tiny_server: str) -> None:
    page.goto(tiny_server)
    page.get_by_role("button", name="the word MUSIC").click()
    expect(page.get_by_label("Images to send").get_by_role("img")).to_have_count(1)
    ask(page, "What color is the circle?")
    assert "red" in finished(page).lower()


def test_files_that_are_not_images_are_rejected_with_a_message(playground: Page) -> None:
    drop(playground, ("notes.txt", "text/plain", b"hello"), ("broken.png", "image/png", b"\x89PNG"))
    notice = playground.locator("#notice")
    expect(notice).to_contain_text("“notes.txt” is not an image")
    expect(notice).to_contain_text("“broken.png” is not an image")
    expect(playground.get_by_label("Images to send").get_by_role("img")).to_have_count(0)
    drop_image(playground)
    expect(notice).to_be_hidden()


def test_only_an_image_larger_than_eight_megabytes_is_downscaled(playground: Page) -> None:
    huge = noise(1700)  # 8.7 MB
    drop_image(playground, "huge.png", huge)
    with playground.expect_request(CHAT) as request:
        ask(playground, "What is this?")
    url = sent(request.value)["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert len(base64.b64decode(url.split(",")[1])) <= 8_000_000
    expect(response_text(playground)).to_have_text(re.compile(r"\w"))  # the server accepts the image


def test_settings_are_sent_with_the_request(playground: Page) -> None:
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("Temperature").fill("0.7")
    playground.get_by_label("Maximum response length").fill("5")
    playground.get_by_label("System message").fill("Be brief.")
    playground.keyboard.press("Escape")
    with playground.expect_request(CHAT) as request:
        ask(playground, "Hello?")
    body = sent(request.value)
    assert (body["temperature"], body["max_tokens"]) == (0.7, 5)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    finished(playground)
    expect(playground.locator(".facts")).to_contain_text("truncated")


def test_default_settings_send_neither_max_tokens_nor_a_system_message(playground: Page) -> None:
    with playground.expect_request(CHAT) as request:
        ask(playground, "Hello?")
    body = sent(request.value)
    assert "max_tokens" not in body
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_shift_enter_inserts_a_newline_and_enter_sends(playground: Page) -> None:
    field = playground.get_by_label("Your question")
    field.fill("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    ask(playground, field.input_value())
    expect(playground.locator(".question-text")).to_have_text("one\ntwo")


@pytest.mark.parametrize("width", [380, 1600])
def test_no_content_overflows_at_any_width(playground: Page, width: int) -> None:
    playground.set_viewport_size({"width": width, "height": 800})
    overhang = "document.documentElement.scrollWidth - innerWidth"
    assert playground.evaluate(overhang) <= 0
    drop_image(playground)
    ask(playground, "Averylongwordwithoutanyspace" * 12)
    expect(playground.locator(".facts")).to_contain_text("tokens/s")
    assert playground.evaluate(overhang) <= 0


def test_escape_closes_the_settings_before_it_stops_the_response(slow_playground: Page) -> None:
    ask(slow_playground, "Hello?")
    expect(response_text(slow_playground)).to_have_text(re.compile(r"\w{3}"))
    slow_playground.get_by_role("button", name="Settings").click()
    settings = slow_playground.locator("#settings")
    expect(settings).to_be_visible()
    slow_playground.keyboard.press("Escape")
    expect(settings).to_be_hidden()
    expect(slow_playground.get_by_role("button", name="Stop")).to_be_visible()
    slow_playground.keyboard.press("Escape")
    finished(slow_playground)
    expect(slow_playground.locator(".facts")).to_contain_text("stopped")


def test_the_load_is_not_requested_after_the_first_token(slow_playground: Page) -> None:
    slow_playground.add_init_script(
        """const start = window.setInterval;
        const stop = window.clearInterval;
        window.intervals = new Set();
        window.setInterval = (call, ms) => {
            const id = start(call, ms);
            if (ms === 1000) window.intervals.add(id);
            return id;
        };
        window.clearInterval = (id) => {
            window.intervals.delete(id);
            stop(id);
        };"""
    )
    slow_playground.reload()
    ask(slow_playground, "Hello?")
    expect(response_text(slow_playground)).to_have_text(re.compile(r"\w{3}"))
    assert slow_playground.evaluate("window.intervals.size") == 0
    expect(slow_playground.get_by_role("button", name="Stop")).to_be_visible()
    slow_playground.get_by_role("button", name="Stop").click()
    finished(slow_playground)
