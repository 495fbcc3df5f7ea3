"""Chats stored in the browser: reopened, edited, exported, imported and deleted.

Imported files are not trusted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, FilePayload, Page, expect

from tests.e2e.playground.page_actions import (
    ask,
    drop,
    drop_image,
    finished,
    noise,
    response_text,
    scene,
    scripted,
    sent,
)
from tests.processes import ControllerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

CHAT = "**/v1/chat/completions"
EVIL = "<img src=x onerror='window.pwned=1'>"


@pytest.fixture
def playground(page: Page, site: ControllerProcess) -> Page:
    page.add_init_script("sessionStorage['llava.max-tokens'] ??= '12'")
    page.goto(site.url)
    return page


def chats(page: Page) -> list[str]:
    """Return the titles of the stored chats."""
    return [title or "" for title in page.locator("#chats .chat").all_text_contents()]


def wait_for_chats(page: Page, *titles: str) -> None:
    expect(page.locator("#chats .chat")).to_have_text(list(titles))


def exported(page: Page, button: str) -> dict[str, Any]:
    """Click an export button and return the content of the downloaded file."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    content: dict[str, Any] = json.loads(Path(download.value.path()).read_text())
    return content


def import_file(page: Page, content: object, name: str = "chats.json") -> None:
    file = FilePayload(name=name, mimeType="application/json", buffer=json.dumps(content).encode())
    page.get_by_label("Import chats").set_input_files(file)


def test_a_chat_is_shown_with_its_images_after_the_page_is_reloaded(playground: Page) -> None:
    drop_image(playground)
    ask(playground, "What is this?")
    response = finished(playground)
    wait_for_chats(playground, "What is this?")
    playground.reload()
    assert finished(playground) == response
    expect(playground.locator(".turn .images img")).to_have_js_property("naturalWidth", 64)
    expect(playground.locator(".facts")).to_contain_text("tokens in")
    with playground.expect_request(CHAT) as request:
        ask(playground, "And now?")
    assert [message["role"] for message in sent(request.value)["messages"]] == ["user", "assistant", "user"]
    finished(playground)


def test_several_chats_are_stored_and_a_running_response_is_saved_in_its_own_chat(
    playground: Page, slow_site: ControllerProcess
) -> None:
    playground.goto(slow_site.url)
    ask(playground, "The first one")
    expect(playground.locator(".response-text")).to_contain_text(" ")
    playground.get_by_role("button", name="New chat").click()
    ask(playground, "The second one")
    finished(playground)
    wait_for_chats(playground, "The second one", "The first one")
    playground.get_by_role("button", name="The first one", exact=True).click()
    expect(playground.locator(".question-text")).to_have_text("The first one")
    expect(playground.locator(".facts")).to_contain_text("stopped")
    expect(playground.locator("[aria-current=true]")).to_have_text("The first one")


def test_chats_are_exported_deleted_and_imported_with_their_images(playground: Page) -> None:
    drop_image(playground, "a.png", noise(20))
    ask(playground, "One?")
    response = finished(playground)
    playground.get_by_role("button", name="New chat").click()
    ask(playground, "Two?")
    finished(playground)
    wait_for_chats(playground, "Two?", "One?")
    whole = exported(playground, "Export all")
    assert [chat["title"] for chat in whole["chats"]] == ["Two?", "One?"]
    assert exported(playground, "Export One?")["chats"] == [whole["chats"][1]]

    playground.on("dialog", lambda dialog: dialog.accept())
    playground.get_by_role("button", name="Delete One?").click()
    wait_for_chats(playground, "Two?")
    playground.get_by_role("button", name="Delete all").click()
    wait_for_chats(playground)
    expect(playground.get_by_role("heading", name="Ask about an image")).to_be_visible()

    import_file(playground, whole)
    wait_for_chats(playground, "Two?", "One?")
    playground.get_by_role("button", name="One?", exact=True).click()
    assert finished(playground) == response
    expect(playground.locator(".turn .images img")).to_have_js_property("naturalWidth", 20)
    import_file(playground, whole)  # a second copy, because an import never replaces a chat
    wait_for_chats(playground, "Two?", "Two?", "One?", "One?")


def hostile(value: Any, depth: int = 0) -> Any:
    """Replace all free text in an exported file with HTML, except for values that select something."""
    if isinstance(value, dict):
        kept = ("kind", "status", "url", "schema") if depth else ("kind",)
        return {name: item if name in kept else hostile(item, depth + 1) for name, item in value.items()} | (
            {"constructor": EVIL, "onclick": EVIL} if depth else {}
        )
    if isinstance(value, list):
        return [hostile(item, depth + 1) for item in value]
    return EVIL if isinstance(value, str) else value


def test_html_in_an_imported_chat_is_shown_as_text(playground: Page) -> None:
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("Request token probabilities").check()
    playground.keyboard.press("Escape")
    drop_image(playground)
    ask(playground, "Hello?")
    finished(playground)
    wait_for_chats(playground, "Hello?")
    content = hostile(exported(playground, "Export all"))
    [response] = content["chats"][0]["turns"][0]["responses"]
    assert response["text"] == response["tokens"][0]["text"] == EVIL
    content["chats"][0]["turns"][0]["responses"].append({**response, "status": "failed", "error": EVIL})
    import_file(playground, content)
    playground.get_by_role("button", name=EVIL, exact=True).click()
    expect(playground.locator(".question-text")).to_have_text(EVIL)
    expect(playground.locator(".failure p")).to_have_text(EVIL)
    playground.get_by_role("button", name="Token probabilities").first.click()
    playground.locator(".token").first.hover()
    expect(playground.get_by_role("tooltip")).to_contain_text("%")
    expect(playground.locator("img[src=x]")).to_have_count(0)
    assert playground.evaluate("window.pwned") is None


def _turn(**changes: Any) -> dict[str, Any]:
    image = {"name": "a.png", "width": 1, "height": 1, "url": "data:image/png;base64,AA==", "isFile": True}
    turn = {"question": "?", "images": [image], "format": {"kind": "text", "schema": ""}, "responses": []}
    return {**turn, **changes}


def _image(url: object) -> dict[str, Any]:
    return _turn(images=[{"name": "a.png", "width": 1, "height": 1, "url": url, "isFile": True}])


INVALID: dict[str, tuple[Callable[[], object], str]] = {
    "another file": (lambda: {"chats": []}, "not exported by this version"),
    "list": (lambda: [1], "not exported by this version"),
    "chats": (lambda: 5, "The field chats must be a list"),
    "external image": (
        lambda: _image("https://evil.test/x.png"),
        "turns[0].images[0].url must be a data: URL",
    ),
    "SVG image": (lambda: _image("data:image/svg+xml;base64,AA=="), "images[0].url must be a data: URL"),
    "script": (lambda: _image("javascript:alert(1)"), "images[0].url must be a data: URL"),
    "question": (lambda: _turn(question={"toString": 1}), "turns[0].question must be a string"),
    "format": (lambda: _turn(format={"kind": "constructor", "schema": ""}), "format.kind must be one of"),
    "schema": (
        lambda: _turn(format={"kind": "schema", "schema": "{"}),
        "format.schema must be a JSON schema",
    ),
    "responses": (lambda: _turn(responses=[None]), "responses[0] must be an object"),
}


def test_invalid_files_are_rejected_with_the_location_of_the_error(playground: Page) -> None:
    expect(playground.get_by_role("button", name="Export all")).to_be_disabled()
    notice = playground.locator("#notice")
    for name, (make, message) in INVALID.items():
        content = make()
        if isinstance(content, dict) and "question" in content:
            content = [{"title": "x", "updatedAt": 1, "turns": [content]}]
        is_whole = name in ("another file", "list")
        file = content if is_whole else {"kind": "llava-serve chats", "version": 1, "chats": content}
        import_file(playground, file, f"{name}.json")
        expect(notice).to_contain_text(f"“{name}.json” cannot be imported.")
        expect(notice).to_contain_text(message)
    import_file(playground, "x" * 10, "text.json")
    expect(notice).to_contain_text("“text.json” cannot be imported.")
    assert chats(playground) == []


def test_a_full_disk_is_reported_and_the_chat_continues(
    playground: Page, context: BrowserContext, site: ControllerProcess
) -> None:
    session = context.new_cdp_session(playground)
    session.send("Storage.overrideQuotaForOrigin", {"origin": site.url, "quotaSize": 1000})
    drop_image(playground, "big.png", noise(300))
    ask(playground, "What is this?")
    assert finished(playground)
    expect(playground.locator("#notice")).to_contain_text("This browser has no space left for chats.")
    ask(playground, "And now?")
    assert finished(playground)
    assert chats(playground) == []


def test_without_a_database_chats_are_kept_until_the_page_is_closed(
    page: Page, site: ControllerProcess
) -> None:
    page.add_init_script("indexedDB.open = () => { throw new DOMException('disabled', 'SecurityError'); }")
    page.goto(site.url)
    expect(page.locator("#notice")).to_contain_text("This browser cannot store chats (disabled).")
    ask(page, "One?")
    first = finished(page)
    page.get_by_role("button", name="New chat").click()
    page.get_by_role("button", name="One?", exact=True).click()
    assert finished(page) == first


def test_storing_a_chat_does_not_hide_another_message(playground: Page, slow_site: ControllerProcess) -> None:
    playground.goto(slow_site.url)
    ask(playground, "One?")
    drop(playground, ("notes.txt", "text/plain", b"hello"))
    finished(playground)
    wait_for_chats(playground, "One?")
    expect(playground.locator("#notice")).to_contain_text("“notes.txt” is not an image")


def test_an_edited_question_replaces_the_rest_of_the_chat(playground: Page) -> None:
    ask(playground, "One?")
    first = finished(playground)
    ask(playground, "Two?")
    finished(playground)
    playground.get_by_role("button", name="Edit").first.click()
    field = playground.get_by_label("Edit the question")
    field.fill("Three?")
    field.press("Escape")
    expect(playground.locator(".question-text")).to_have_text(["One?", "Two?"])
    playground.get_by_role("button", name="Edit").first.click()
    playground.get_by_label("Edit the question").fill("Three?")
    with playground.expect_request(CHAT) as request:
        playground.get_by_role("button", name="Save and send").click()
    assert sent(request.value)["messages"] == [{"role": "user", "content": "Three?"}]
    expect(playground.locator(".question-text")).to_have_text(["Three?"])
    assert finished(playground) != first


def test_a_response_is_regenerated_with_the_current_settings(playground: Page) -> None:
    ask(playground, "One?")
    first = finished(playground)
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("System message").fill("Be brief.")
    playground.keyboard.press("Escape")
    with playground.expect_request(CHAT) as request:
        playground.get_by_role("button", name="Regenerate").click()
    system, question = sent(request.value)["messages"]
    assert (system["content"], question["content"]) == ("Be brief.", "One?")
    assert finished(playground) != first
    expect(playground.locator(".turn")).to_have_count(1)


def test_images_are_sorted_with_the_keyboard_and_the_mouse(playground: Page) -> None:
    for name, content in (("a.png", scene()), ("b.png", noise(8)), ("c.png", noise(9))):
        drop_image(playground, name, content)
    thumbnails = playground.locator("#thumbs img")

    def order() -> list[str | None]:
        return [image.get_attribute("alt") for image in thumbnails.all()]

    move = playground.get_by_role("button", name="Move a.png to the right")
    move.focus()
    playground.keyboard.press("Enter")
    expect(playground.locator("#status")).to_have_text("a.png is now image 2 of 3.")
    expect(move).to_be_focused()
    playground.keyboard.press("Enter")
    assert order() == ["b.png", "c.png", "a.png"]
    expect(playground.get_by_role("button", name="Move a.png to the left")).to_be_focused()
    playground.locator("#thumbs li").nth(2).drag_to(playground.locator("#thumbs li").nth(0))
    assert order() == ["a.png", "b.png", "c.png"]
    expect(playground.locator("#notice")).to_be_hidden()
    with playground.expect_request(CHAT) as request:
        ask(playground, "Which?")
    urls = [part["image_url"]["url"] for part in sent(request.value)["messages"][0]["content"][:-1]]
    assert len(urls) == 3 and len(urls[1]) < len(urls[2])
    finished(playground)


def test_an_image_is_enlarged_with_buttons_and_keys(playground: Page) -> None:
    drop_image(playground)
    ask(playground, "What is this?")
    playground.get_by_role("button", name="scene.png, 64 × 48").click()
    image = playground.locator("#lightbox-image")
    state = playground.locator("#zoom-state")
    expect(state).to_have_text("Fit")
    playground.get_by_role("button", name="Zoom in").click()
    expect(state).to_have_text("150 %")
    playground.keyboard.press("+")
    expect(state).to_have_text("225 %")
    assert image.evaluate("image => image.getBoundingClientRect().width") == 144
    playground.keyboard.press("0")
    expect(state).to_have_text("Fit")
    playground.keyboard.press("Escape")
    expect(playground.get_by_role("dialog", name="Image")).to_be_hidden()
    expect(playground.get_by_role("button", name="scene.png, 64 × 48")).to_be_focused()
    finished(playground)


def test_a_deeply_nested_json_response_is_shown_as_text(playground: Page) -> None:
    text = "[" * 20_000 + "]" * 20_000
    playground.get_by_label("Output format").select_option("JSON object")
    scripted(playground, text)
    ask(playground, "Hello?")
    finished(playground)
    expect(playground.locator(".validation")).to_have_text(
        "The response has more than 100 levels, so it is not checked."
    )
    wait_for_chats(playground, "Hello?")
    playground.reload()
    expect(playground.locator("pre code")).to_have_text(text)
    wait_for_chats(playground, "Hello?")


def test_a_chat_that_cannot_be_displayed_leaves_the_list_usable(
    context: BrowserContext, site: ControllerProcess
) -> None:
    page = context.new_page()  # not the fixture, because the page logs the error
    page.goto(site.url)
    scripted(page, "Hi.")
    ask(page, "Hello?")
    finished(page)
    wait_for_chats(page, "Hello?")
    page.evaluate(
        """async () => {
            const { ChatStore } = await import("/playground/chat_store.js");
            const store = new ChatStore();
            await store.open();
            // The page would otherwise show the chat before it is reloaded.
            BroadcastChannel.prototype.postMessage = () => {};
            const [{ id }] = await store.titles();
            await store.put({ ...(await store.get(id)), turns: [null] });
        }"""
    )
    page.reload()
    expect(page.locator("#notice")).to_contain_text("The chat “Hello?” cannot be displayed")
    wait_for_chats(page, "Hello?")
    expect(page.get_by_role("button", name="Delete all")).to_be_enabled()


def test_a_response_is_stored_while_it_is_generated(playground: Page, slow_site: ControllerProcess) -> None:
    playground.goto(slow_site.url)
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("Maximum response length").fill("")
    playground.keyboard.press("Escape")
    ask(playground, "Hello?")
    playground.evaluate(
        """async () => {
            const { ChatStore } = await import("/playground/chat_store.js");
            const store = new ChatStore();
            await store.open();
            for (let text = ""; text === "";) {
                const [entry] = await store.titles();
                const chat = entry && (await store.get(entry.id));
                const response = chat?.turns[0].responses[0];
                if (response && response.status !== "running") throw new Error(response.status);
                text = response?.text ?? "";
            }
        }"""
    )
    playground.reload()
    expect(playground.locator(".failure")).to_contain_text("closed before the response was complete")
    assert response_text(playground).text_content()
