"""A chat in several tabs of one browser: no tab overwrites what another one has stored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.e2e.playground.page_actions import ask, finished, scripted
from tests.processes import ControllerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

CHAT = "**/v1/chat/completions"
READ_QUESTIONS = """async () => {
    const { ChatStore } = await import("/playground/chat_store.js");
    const store = new ChatStore();
    await store.open();
    const entries = await store.titles();
    const chats = await Promise.all(entries.map(({ id }) => store.get(id)));
    const questions = (turns) => turns.map(({ question }) => question);
    return Object.fromEntries(chats.map(({ title, turns }) => [title, questions(turns)]));
}"""


@pytest.fixture
def tabs(page: Page, context: BrowserContext, site: ControllerProcess) -> Iterator[tuple[Page, Page]]:
    """Two tabs with the same chat. Their responses are complete at once, unless a test removes the route."""
    page.goto(site.url)
    scripted(page, "Yes.")
    ask(page, "One?")
    finished(page)
    other = context.new_page()
    complaints: list[str] = []
    other.on("pageerror", lambda error: complaints.append(str(error)))
    other.goto(site.url)
    scripted(other, "Yes.")
    open_chat(other, "One?")
    expect_questions(other, "One?")
    yield page, other
    assert complaints == []


def open_chat(page: Page, title: str) -> None:
    page.get_by_role("button", name=title, exact=True).click()


def expect_questions(page: Page, *questions: str) -> None:
    expect(page.locator(".question-text")).to_have_text(list(questions))


def expect_chats(page: Page, *titles: str) -> None:
    expect(page.locator("#chats .chat")).to_have_text(list(titles))


def block_messages(page: Page) -> None:
    """Make the page miss the changes of other tabs, as if it was suspended."""
    page.evaluate("BroadcastChannel.prototype.postMessage = () => {}")


def test_a_tab_shows_messages_of_another_tab_and_continues_the_chat(tabs: tuple[Page, Page]) -> None:
    first, second = tabs
    ask(second, "Two?")
    expect_questions(first, "One?", "Two?")
    expect(first.locator(".response-text")).to_have_text(["Yes.", "Yes."])
    ask(first, "Three?")
    expect_questions(second, "One?", "Two?", "Three?")
    assert first.evaluate(READ_QUESTIONS) == {"One?": ["One?", "Two?", "Three?"]}
    expect(first.locator("#notice")).to_be_hidden()


def test_no_message_is_lost_if_a_tab_does_not_know_the_changes_of_another_one(
    tabs: tuple[Page, Page],
) -> None:
    first, second = tabs
    block_messages(second)
    ask(second, "Two?")
    finished(second)
    expect_questions(first, "One?")
    ask(first, "Three?")
    expect(first.locator("#notice")).to_contain_text("stored in a copy")
    expect_chats(first, "One? (copy)", "One?")
    expected = {"One?": ["One?", "Two?"], "One? (copy)": ["One?", "Three?"]}
    assert first.evaluate(READ_QUESTIONS) == expected
    ask(first, "Four?")
    finished(first)
    first.reload()
    expect_questions(first, "One?", "Three?", "Four?")


def test_no_message_is_lost_if_two_tabs_generate_at_once(tabs: tuple[Page, Page]) -> None:
    held: list[Route] = []
    for tab, question in zip(tabs, ("Left?", "Right?"), strict=True):
        tab.unroute(CHAT)
        tab.route(CHAT, lambda route: held.append(route))
        tab.get_by_label("Your question").fill(question)
    for tab in tabs:
        tab.evaluate("document.getElementById('composer').requestSubmit()")
    for tab in tabs:
        expect(tab.get_by_role("button", name="Stop")).to_be_visible()
    for route in held:
        route.continue_()
    for tab in tabs:
        finished(tab)
        expect(tab.locator("#chats .chat")).to_have_count(2)
    stored = list(tabs[0].evaluate(READ_QUESTIONS).values())
    assert {question for chat in stored for question in chat} == {"One?", "Left?", "Right?"}
    for tab in tabs:
        assert tab.locator(".question-text").all_text_contents() in stored


def test_an_edit_is_not_discarded_by_a_change_in_another_tab(tabs: tuple[Page, Page]) -> None:
    first, second = tabs
    first.get_by_role("button", name="Edit").click()
    field = first.get_by_label("Edit the question")
    field.fill("Changed?")
    ask(second, "Two?")
    finished(second)
    expect(field).to_have_value("Changed?")
    first.get_by_role("button", name="Save and send").click()
    expect_chats(second, "One? (copy)", "One?")
    assert first.evaluate(READ_QUESTIONS) == {"One?": ["One?", "Two?"], "One? (copy)": ["Changed?"]}


@pytest.mark.parametrize("name", ["Delete One?", "Delete all"])
def test_a_chat_that_another_tab_deletes_is_closed_and_not_stored_again(
    tabs: tuple[Page, Page], name: str
) -> None:
    first, second = tabs
    first.unroute(CHAT)
    first.route(CHAT, lambda route: None)  # the response is still running when the chat is deleted
    ask(first, "Two?")
    expect_questions(second, "One?", "Two?")
    expect(second.locator(".failure")).to_contain_text("Another tab is generating this response.")
    second.on("dialog", lambda dialog: dialog.accept())
    second.get_by_role("button", name=name).click()
    expect_chats(second)
    expect(first.locator("#notice")).to_have_text("Another tab has deleted this chat.")
    expect_questions(first)
    expect_chats(first)
    first.unroute(CHAT)
    scripted(first, "Yes.")
    ask(first, "Three?")
    finished(first)
    expect_chats(first, "Three?")
    assert first.evaluate(READ_QUESTIONS) == {"Three?": ["Three?"]}


def test_another_chat_remains_open_while_a_tab_deletes_or_adds_chats(tabs: tuple[Page, Page]) -> None:
    first, second = tabs
    second.get_by_role("button", name="New chat").click()
    ask(second, "Two?")
    finished(second)
    expect_chats(first, "Two?", "One?")
    expect_questions(first, "One?")
    second.on("dialog", lambda dialog: dialog.accept())
    second.get_by_role("button", name="Delete Two?").click()
    expect_chats(first, "One?")
    expect_questions(first, "One?")
