"""Accessibility, weight and privacy of the playground page.

axe-core checks the page in each state, in both color themes and at both sizes. A serious or critical finding
fails the test. The keyboard test uses no pointer.
"""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from playwright.sync_api import Page, Response, expect

from tests.axe import findings
from tests.e2e.playground.page_actions import ask, drop_image, finished, response_text, scripted
from tests.processes import ControllerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

MAX_PAGE_BYTES = 150_000
PHONE = {"width": 390, "height": 844}
RESPONSE = """# Title

[A link](https://example.com), `code` and

```sh
ls
```

| a | b |
|---|---|
| 1 | 2 |
"""


@pytest.fixture
def playground(page: Page, site: ControllerProcess) -> Page:
    page.add_init_script("sessionStorage['llava.max-tokens'] ??= '12'")
    page.emulate_media(
        reduced_motion="reduce"
    )  # axe measures the contrast of elements that are still transparent
    page.goto(site.url)
    return page


def converse(page: Page) -> None:
    """Ask a question about an image and show a response with all kinds of elements."""
    drop_image(page, "a.png")
    scripted(page, RESPONSE)
    ask(page, "What is this?")
    finished(page)
    drop_image(page, "b.png")
    drop_image(page, "c.png")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious_in_any_state(playground: Page, theme: str, size: dict[str, int]) -> None:
    playground.set_viewport_size(size)  # type: ignore[arg-type]
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("Theme").select_option(theme)
    expect(playground.get_by_label("Model")).to_be_enabled()
    found = {"settings": findings(playground)}
    playground.keyboard.press("Escape")
    found["welcome"] = findings(playground)
    converse(playground)
    playground.get_by_label("Output format").select_option("JSON schema")
    found["conversation"] = findings(playground)
    if playground.locator("#sidebar").is_hidden():
        playground.get_by_role("button", name="Chats", exact=True).click()
    expect(playground.locator("#chats .chat")).to_have_count(1)
    found["chats"] = findings(playground)
    playground.keyboard.press("Escape")
    playground.get_by_role("button", name="Edit").click()
    found["editing"] = findings(playground)
    playground.keyboard.press("Escape")
    playground.get_by_role("button", name="a.png, 64 × 48").click()
    found["image"] = findings(playground)
    assert {state: texts for state, texts in found.items() if texts} == {}


def test_a_chat_needs_no_pointer_and_focus_is_always_visible(playground: Page) -> None:
    expect(playground.get_by_label("Model")).to_be_enabled()

    def tab_to(name: str, key: str = "Tab") -> None:
        for _ in range(60):
            playground.keyboard.press(key)
            focused = playground.locator(":focus")
            outline = focused.evaluate("node => getComputedStyle(node).outlineStyle")
            if (focused.get_attribute("aria-label") or focused.text_content() or "").strip() == name:
                assert outline != "none"
                return
        raise AssertionError(f"{name} cannot be reached with {key}")

    playground.locator("#question").focus()
    playground.keyboard.type("Hello?")
    playground.keyboard.press("Enter")
    finished(playground)
    tab_to("Copy response", "Shift+Tab")
    playground.keyboard.press("Enter")
    expect(playground.get_by_role("button", name="Copied")).to_be_visible()
    tab_to("Edit", "Shift+Tab")
    playground.keyboard.press("Enter")
    playground.keyboard.type(" You?")
    playground.keyboard.press("Enter")
    expect(playground.locator(".question-text")).to_have_text("Hello? You?")
    finished(playground)
    tab_to("Hello?", "Shift+Tab")  # in the list of chats
    expect(playground.locator(":focus")).to_have_attribute("aria-current", "true")


def test_screen_readers_are_informed_of_progress_and_errors(playground: Page) -> None:
    status = playground.get_by_role("status").last
    scripted(playground, "A red ", "circle.")
    ask(playground, "What is this?")
    expect(playground.locator("#status")).to_have_text("Response: A red circle.")
    expect(status).to_be_attached()
    playground.unroute("**/v1/chat/completions")
    ask(playground, "[[refuse]]")
    expect(playground.get_by_role("alert")).to_contain_text(
        "The prompt instructed the echo model to reject it"
    )


def test_the_theme_is_stored_and_applied_before_the_first_paint(playground: Page) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    playground.emulate_media(color_scheme="light")
    light = playground.evaluate(background)
    playground.emulate_media(color_scheme="dark")
    dark = playground.evaluate(background)
    assert light != dark
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("Theme").select_option("light")
    assert playground.evaluate(background) == light
    playground.reload()
    assert playground.evaluate(background) == light


def test_the_phone_layout_fits_the_screen_and_chats_are_in_a_drawer(playground: Page) -> None:
    playground.set_viewport_size(PHONE)  # type: ignore[arg-type]
    playground.reload()
    sidebar = playground.locator("#sidebar")
    expect(sidebar).to_be_hidden()
    converse(playground)
    assert playground.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    playground.get_by_role("button", name="New chat").click()
    playground.get_by_role("button", name="Chats", exact=True).click()
    playground.get_by_role("button", name="What is this?", exact=True).click()
    expect(sidebar).to_be_hidden()
    expect(playground.locator(".turn")).to_have_count(1)
    playground.get_by_role("button", name="Chats", exact=True).click()
    playground.keyboard.press("Escape")
    expect(sidebar).to_be_hidden()
    expect(playground.get_by_role("button", name="Chats", exact=True)).to_be_focused()


def test_the_browser_transfers_less_than_150_kb_for_the_page(page: Page, site: ControllerProcess) -> None:
    responses: list[Response] = []
    sizes: list[float] = []  # of headers and bodies, as transferred
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.on("response", lambda response: responses.append(response))
    page.goto(site.url)
    expect(page.get_by_label("Model")).to_be_enabled()
    page.wait_for_load_state("networkidle")
    assert all(response.url.startswith(site.url) for response in responses)
    assert len(sizes) == len(responses)
    assert 50_000 < sum(sizes) < MAX_PAGE_BYTES


def test_every_module_is_preloaded(page: Page, site: ControllerProcess) -> None:
    page.goto(site.url)
    loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    modules = {name.rpartition("/")[2] for name in loaded if name.endswith(".js")}
    html = (files("llava_server") / "playground" / "index.html").read_text()
    assert set(re.findall(r'"/playground/([^"]+\.js)"', html)) == modules
    expect(response_text(page)).to_have_count(0)


def test_focus_returns_to_the_edit_button_after_an_edit_is_cancelled(playground: Page) -> None:
    ask(playground, "Hello?")
    finished(playground)
    edit = playground.get_by_role("button", name="Edit")
    for cancel in ("Escape", "Enter"):
        edit.focus()
        playground.keyboard.press("Enter")
        expect(playground.get_by_label("Edit the question")).to_be_focused()
        if cancel == "Enter":
            playground.get_by_role("button", name="Cancel").focus()
        playground.keyboard.press(cancel)
        expect(edit).to_be_focused()
