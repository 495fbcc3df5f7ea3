"""Demo mode: the playground kills the worker of a response, and another worker continues it.

The stack is that of ``llava-serve up --demo``. Without demo mode, there is neither a button nor a route.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.client.cli.command_line import start
from tests.client.cli.up.test_up_e2e import Running, running
from tests.e2e.playground.page_actions import ask, finished
from tests.machine_speed import scaled
from tests.processes import ControllerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    """Two echo workers that generate slowly."""
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("LLAVA_ECHO_STEP_S", str(scaled(0.05)))
        with running("--demo") as up:
            yield up


def worker_pids(up: Running) -> set[int]:
    return {process.pid for process in up.processes() if "llava_worker" in " ".join(process.cmdline())}


def test_killing_the_worker_does_not_interrupt_the_response(page: Page, demo: Running) -> None:
    page.add_init_script("sessionStorage['llava.max-tokens'] ??= '40'")
    page.goto(demo.url)
    ask(page, "Describe everything.")
    expected = finished(page)
    before = worker_pids(demo)
    assert len(before) == 2
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".response-text")).to_have_text(re.compile(r"\w{3}"))
    page.get_by_role("button", name="Kill this worker").click()
    expect(page.locator("#status")).to_have_text(
        "The worker was killed. Another worker continues the response."
    )
    assert len(before - worker_pids(demo)) == 1
    assert finished(page) == expected
    expect(page.locator(".facts")).to_contain_text("continued by another worker")
    expect(page.get_by_role("button", name="Kill this worker")).to_be_hidden()


def test_only_the_worker_of_a_running_response_can_be_killed(demo: Running) -> None:
    before = worker_pids(demo)
    url = f"{demo.url}/demo/kill-worker"
    for body, status, code in (
        ({"response_id": "chatcmpl-unknown"}, 404, "worker_not_found"),
        ({"response_id": 5}, 400, "invalid_type"),
        ({}, 400, "missing_required_parameter"),
        ({"worker_id": "x-1-y"}, 400, None),
    ):
        response = httpx2.post(url, json=body, timeout=scaled(30))
        assert response.status_code == status, response.text
        assert code is None or response.json()["error"]["code"] == code
    evil = {"origin": "https://evil.test"}
    assert httpx2.post(url, json={"response_id": "x"}, headers=evil).status_code == 403
    assert worker_pids(demo) == before


def test_without_demo_mode_there_is_neither_a_button_nor_a_route(
    page: Page, slow_site: ControllerProcess
) -> None:
    page.goto(slow_site.url)
    ask(page, "Describe everything.")
    expect(page.locator(".response-text")).to_have_text(re.compile(r"\w{3}"))
    expect(page.get_by_role("button", name="Kill this worker")).to_have_count(0)
    response = httpx2.post(f"{slow_site.url}/demo/kill-worker", json={"response_id": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")


def test_demo_mode_requires_a_loopback_address(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="up") as folder:
        command = ("up", "--model", "echo", "--port", "0", "--demo", "--host", "0.0.0.0")
        _, errors = (process := start(*command, env={"TMPDIR": folder})).communicate(timeout=scaled(60))
        assert (process.returncode, list(Path(folder).iterdir())) == (2, [])
        assert "--demo lets every client kill workers" in errors and "0.0.0.0" in errors
