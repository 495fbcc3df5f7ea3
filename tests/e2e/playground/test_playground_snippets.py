"""Code snippets copied from the playground.

Each snippet is run and must print the response shown on the page.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.playground.conftest import KEY
from tests.e2e.playground.page_actions import ask, copied, drop_image, finished, noise
from tests.machine_speed import scaled
from tests.processes import ControllerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

# Contains all characters with a special meaning in shells, JSON or Python.
QUESTION = """What's "$HOME" `id` \\n $(id) 100% {x} é 😀 \u2028 JSON?"""
BIG = noise(200)  # 120 kB, too long to be embedded in a snippet
BIG_NAME = "it's a $HOME image.png"


@pytest.fixture
def playground(page: Page, site: ControllerProcess) -> Page:
    prefer_short_responses(page)
    page.goto(site.url)
    return page


def prefer_short_responses(page: Page) -> None:
    page.add_init_script("sessionStorage.setItem('llava.max-tokens', '12')")


def run(arguments: list[str], folder: Path) -> str:
    """Run the program and return its output."""
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "LLAVA_API_KEY": KEY},
        capture_output=True,
        timeout=scaled(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def run_curl(text: str, folder: Path) -> str:
    """Run the curl command and return the text of the streamed response."""
    output = run(["bash", "-c", text], folder)
    chunks = [line.removeprefix("data: ") for line in output.splitlines() if line.startswith("data: {")]
    assert output.rstrip().endswith("data: [DONE]"), output
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def run_python(text: str, folder: Path) -> str:
    return run([sys.executable, "-c", text], folder).removesuffix("\n")


def test_the_copied_curl_command_prints_the_response_of_the_page(playground: Page, tmp_path: Path) -> None:
    drop_image(playground)
    ask(playground, QUESTION)
    shown = finished(playground)
    assert run_curl(copied(playground, "Copy as curl"), tmp_path) == shown


def test_the_copied_python_program_prints_the_response_of_the_page(playground: Page, tmp_path: Path) -> None:
    drop_image(playground)
    ask(playground, QUESTION)
    shown = finished(playground)
    assert run_python(copied(playground, "Copy as Python"), tmp_path) == shown


def test_copied_snippets_contain_the_whole_conversation(playground: Page, tmp_path: Path) -> None:
    ask(playground, "One?")
    finished(playground)
    ask(playground, QUESTION)
    shown = finished(playground)
    assert run_curl(copied(playground, "Copy as curl"), tmp_path) == shown


def test_copied_snippets_read_a_large_image_from_its_file(playground: Page, tmp_path: Path) -> None:
    (tmp_path / BIG_NAME).write_bytes(BIG)
    drop_image(playground, BIG_NAME, BIG)
    ask(playground, QUESTION)
    shown = finished(playground)
    for button, run_text in (("Copy as curl", run_curl), ("Copy as Python", run_python)):
        text = copied(playground, button)
        assert len(text) < 2000
        assert run_text(text, tmp_path) == shown


def test_text_in_a_json_schema_is_not_run_by_the_copied_snippets(playground: Page, tmp_path: Path) -> None:
    """The names of properties are quoted too. Schemas can come from other people."""
    evil = """$(touch pwned)`touch pwned`"+__import__("os").system("touch pwned")+"\\"""
    (tmp_path / BIG_NAME).write_bytes(BIG)
    drop_image(playground, BIG_NAME, BIG)  # with an image file, the shell expands the text of the request
    playground.get_by_label("Output format").select_option("JSON schema")
    schema = {"type": "object", "properties": {evil: {"enum": [None, True, evil]}}}
    playground.get_by_label("JSON schema of the response").fill(json.dumps(schema))
    ask(playground, evil)
    expect(playground.locator(".failure")).to_contain_text("does not support structured output")
    for button, command in (("Copy as curl", ["bash", "-c"]), ("Copy as Python", [sys.executable, "-c"])):
        text = copied(playground, button)
        done = subprocess.run(
            [*command, text], cwd=tmp_path, capture_output=True, text=True, timeout=scaled(60), check=False
        )
        assert "does not support structured output" in done.stdout + done.stderr  # the request was understood
        assert [path.name for path in tmp_path.iterdir()] == [BIG_NAME]


def test_copied_snippets_read_the_key_from_the_environment(
    page: Page, guarded_site: ControllerProcess, tmp_path: Path
) -> None:
    prefer_short_responses(page)
    page.goto(guarded_site.url)
    page.get_by_label("This server requires an API key").fill(KEY)
    page.get_by_role("button", name="Use key").click()
    ask(page, "Hello?")
    shown = finished(page)
    assert run_curl(copied(page, "Copy as curl"), tmp_path) == shown
    assert run_python(copied(page, "Copy as Python"), tmp_path) == shown
