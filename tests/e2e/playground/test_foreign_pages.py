"""In a real browser, a page of another origin can neither use nor read a server without authentication.

The page tries everything that browsers allow without a preflight request, and also DNS rebinding: Chromium
resolves ``evil.test`` to the server's address, so that the page and the server have the same origin.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.e2e.playground.conftest import CHROMIUM, CHROMIUM_ARGS
from tests.e2e.playground.page_actions import ask, drop, finished
from tests.machine_speed import scaled
from tests.processes import ControllerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

NAME = "evil.test"
# Each attack returns what the page could read, or "blocked".
ATTACKS = """async (server) => {
    const read = async (path, options) => {
        try {
            const response = await fetch(server + path, options);
            return `${response.status} ${await response.text()}`;
        } catch {
            return "blocked";
        }
    };
    const send = (path, body, options = {}) => read(path, { method: "POST", body, ...options });
    const form = new FormData();
    form.append("purpose", "vision");
    form.append("file", new Blob(["stolen"]), "x.png");
    const prompt = JSON.stringify({ model: "echo", prompt: "Hi", stream: false });
    const chat = JSON.stringify({ model: "echo", messages: [{ role: "user", content: "Hi" }] });
    const load = (tag) => new Promise((resolve) => {
        const node = document.createElement(tag);
        node.onload = () => resolve("loaded");
        node.onerror = () => resolve("blocked");
        node.src = server + "/playground/icon.svg";
        document.body.append(node);
    });
    const submit = () => new Promise((resolve) => {
        const frame = Object.assign(document.createElement("iframe"), { name: "target" });
        const sent = document.createElement("form");
        Object.assign(sent, { action: server + "/v1/files", method: "post", target: "target" });
        sent.enctype = "multipart/form-data";
        sent.innerHTML = '<input name="purpose" value="vision"><input type="file" name="file">';
        const file = new DataTransfer();
        file.items.add(new File(["stolen"], "form.png"));
        document.body.append(frame, sent);
        sent.querySelector("[type=file]").files = file.files;
        frame.onload = () => resolve("sent");
        sent.submit();
    });
    const results = {
        models: await read("/v1/models"),
        metrics: await read("/metrics"),
        upload: await send("/v1/files", form),
        "opaque upload": await send("/v1/files", form, { mode: "no-cors" }),
        "plain text": await send("/api/generate", prompt, { mode: "no-cors" }),
        json: await send("/v1/chat/completions", chat, { headers: { "content-type": "application/json" } }),
        image: await load("img"),
        form: await submit(),
    };
    navigator.sendBeacon(server + "/api/generate", prompt);
    return results;
}"""


class _EvilPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title><body>")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def evil_url() -> Iterator[str]:
    """The URL of another website, which has the name ``evil.test``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _EvilPage)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{NAME}:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that resolves ``evil.test`` to this machine.

    Recent versions of Chromium restrict access to local servers, and other browsers do not. The restriction
    is disabled, so that the tests depend only on the server.
    """
    if not CHROMIUM.exists():
        pytest.skip(f"Chromium is not installed at {CHROMIUM}. Run apt-get install chromium.")
    expect.set_options(timeout=scaled(30_000))
    with sync_playwright() as playwright:
        resolver = f"--host-resolver-rules=MAP {NAME} 127.0.0.1"
        args = [*CHROMIUM_ARGS, resolver, "--disable-features=LocalNetworkAccessChecks"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def evil_page(browser: Browser, evil_url: str) -> Iterator[Page]:
    """A page of the other website."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(evil_url)
    yield page
    context.close()


def num_submitted(site: ControllerProcess) -> float:
    return site.metric("llava_request_success_total") + site.metric("llava_num_open_requests")


def files(site: ControllerProcess) -> list[Any]:
    found: list[Any] = httpx2.get(f"{site.url}/v1/files", timeout=scaled(30)).json()["data"]
    return found


def test_a_page_of_another_origin_can_neither_use_nor_read_the_server(
    evil_page: Page, site: ControllerProcess
) -> None:
    before = num_submitted(site)
    results = evil_page.evaluate(ATTACKS, site.url)
    assert {name: result for name, result in results.items() if result != "blocked"} == {"form": "sent"}
    assert (files(site), num_submitted(site)) == ([], before)


def test_a_page_with_a_rebound_name_can_neither_use_nor_read_the_server(
    evil_page: Page, site: ControllerProcess
) -> None:
    before = num_submitted(site)
    url = site.url.replace("127.0.0.1", NAME)
    page = {"content_type": "text/html", "body": "<!doctype html><title>evil</title><body>"}

    def fulfill(route: Route) -> None:
        route.fulfill(**page)  # type: ignore[arg-type]

    evil_page.route(f"{url}/evil", fulfill)
    evil_page.goto(f"{url}/evil")
    results = evil_page.evaluate(ATTACKS, "")
    assert evil_page.evaluate("location.origin") == url
    readable = ("models", "metrics", "upload", "opaque upload", "plain text", "json")
    assert {name: result for name, result in results.items() if name not in readable} == {
        "image": "blocked",
        "form": "sent",
    }
    for name in readable:
        assert results[name].startswith("403 ") and "host_not_allowed" in results[name], results
    assert (files(site), num_submitted(site)) == ([], before)


def test_pages_of_the_server_cannot_be_framed(evil_page: Page, site: ControllerProcess) -> None:
    for path in ("/", "/docs", "/livez"):
        with evil_page.expect_event("requestfailed") as failed:
            evil_page.evaluate(
                """url => {
                    const frame = Object.assign(document.createElement("iframe"), { src: url });
                    document.body.replaceChildren(frame);
                }""",
                site.url + path,
            )
        assert failed.value.failure == "net::ERR_BLOCKED_BY_RESPONSE", path


def test_the_playground_works_and_runs_no_inline_script(page: Page, site: ControllerProcess) -> None:
    """``page`` fails the test if another host is contacted."""
    page.goto(site.url)
    ask(page, "Hi?")
    assert finished(page)
    svg = (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>window.pwned=1</script></svg>'
    )
    drop(page, ("<img src=x onerror=window.pwned=1>.svg", "image/svg+xml", svg))
    assert page.evaluate("window.pwned") is None


def test_an_injected_script_would_be_blocked_by_the_policy(evil_page: Page, site: ControllerProcess) -> None:
    evil_page.goto(f"{site.url}/")
    violated = evil_page.evaluate(
        """() => new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.pwned=1'>");
        })"""
    )
    assert violated.startswith("script-src")
    assert evil_page.evaluate("window.pwned") is None


def test_the_reference_is_displayed_without_scripts_or_other_hosts(
    page: Page, site: ControllerProcess
) -> None:
    page.goto(f"{site.url}/docs")
    expect(page.get_by_role("heading", name="POST /v1/chat/completions", exact=True)).to_be_visible()
    page.get_by_role("link", name="ChatRequest", exact=True).first.click()
    expect(page.locator("#schema-ChatRequest")).to_be_in_viewport()
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("getComputedStyle(document.body).display") == "grid"
