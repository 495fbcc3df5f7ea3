"""Fixtures for the playground tests: a queue, a controller, an echo worker and a headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.e2e.conftest import TINY
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, running_controller, running_site, worker_factory
from tests.waiting import wait_until
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
    """A server with the echo model. Responses have 64 to 127 tokens. Tests must not leave state behind."""
    folder = tmp_path_factory.mktemp("site")
    with running_redis() as url, running_site(url, folder, echo_step_s=0.002, echo_faults=True) as site:
        yield site


@pytest.fixture(scope="session")
def slow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    """A server that generates slowly, so that tests can inspect or stop a response while it is streamed."""
    folder = tmp_path_factory.mktemp("slow-site")
    with running_redis() as url, running_site(url, folder, echo_step_s=scaled(0.05)) as site:
        yield site


@pytest.fixture(scope="session")
def guarded_site(
    site: ControllerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControllerProcess]:
    """A second controller, which requires the API key, on the same queue."""
    folder = tmp_path_factory.mktemp("guarded")
    with running_controller(site.redis_url, folder, api_keys=KEY, auth=True) as guarded:
        yield guarded


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    """A server with the bundled model and the echo model."""
    folder = tmp_path_factory.mktemp("two-models")
    with running_redis() as url, worker_factory(url, folder) as start_worker:
        workers = [start_worker(**TINY), start_worker(echo_step_s=0.002)]
        wait_until(lambda: all(worker.is_ready for worker in workers), "both workers")
        with running_controller(url, folder) as site:
            yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one module.

    It is not session-scoped, because Playwright keeps an event loop running and async tests need their own.
    """
    if not CHROMIUM.exists():
        pytest.skip(f"Chromium is not installed at {CHROMIUM}. Run apt-get install chromium.")
    expect.set_options(timeout=scaled(30_000))  # scaled, because pages are slower on a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(scaled(60_000))
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page.

    The test fails if the page violates its content policy, raises an error or contacts another host.
    """
    page = context.new_page()
    complaints: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: hosts.add(re.sub(r"^(\w+:(//[^/:]+)?).*", r"\1", request.url)))
    yield page
    # Chromium logs each 4xx and 5xx response to the console. Ignore these messages, because tests of error
    # handling cause such responses on purpose.
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []
    assert hosts <= {"http://127.0.0.1", "blob:", "data:"}
