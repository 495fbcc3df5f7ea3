"""A real queue, controller and echo worker, and a headless Chromium that looks at them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.machine_speed import scaled
from tests.processes import ControllerProcess, running_controller, running_site
from tests.wire.redis_server import running_redis

KEY = "a-key-for-tests"
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    """A server with the echo model, which writes 64 to 127 tokens; no test leaves anything behind."""
    folder = tmp_path_factory.mktemp("site")
    with running_redis() as url, running_site(url, folder, echo_step_s=0.002, echo_faults=True) as site:
        yield site


@pytest.fixture(scope="session")
def slow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    """A server whose responses last long enough to be looked at, or stopped, while they grow."""
    folder = tmp_path_factory.mktemp("slow-site")
    with running_redis() as url, running_site(url, folder, echo_step_s=scaled(0.05)) as site:
        yield site


@pytest.fixture(scope="session")
def guarded_site(
    site: ControllerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControllerProcess]:
    """A second controller on the same queue, which requires the API key."""
    folder = tmp_path_factory.mktemp("guarded")
    with running_controller(site.redis_url, folder, api_keys=KEY, auth=True) as guarded:
        yield guarded


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the whole session: Playwright holds an event loop meanwhile, and async tests need their own."""
    if not CHROMIUM.exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}: apt-get install chromium")
    expect.set_options(timeout=scaled(30_000))  # a busy machine is slow, not wrong
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that must not break its content policy, throw, or ask another machine for anything."""
    page = context.new_page()
    complaints: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: hosts.add(re.sub(r"^(\w+:(//[^/:]+)?).*", r"\1", request.url)))
    yield page
    # Chromium writes each 4xx and 5xx to the console; the tests of refusals cause some.
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []
    assert hosts <= {"http://127.0.0.1", "blob:", "data:"}
