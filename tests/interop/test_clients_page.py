"""docs/guides/clients.md lists the tested clients, and its examples are the programs that the tests run."""

from __future__ import annotations

import clients_page
from clients_page import ROOT

from tests.docs.code_blocks import code_blocks
from tests.interop.catalog import CLIENTS


def test_the_page_is_current() -> None:
    current = clients_page.PAGE.read_text("utf-8")
    assert current == clients_page.page(), "Run python tools/clients_page.py."


def test_every_example_on_the_page_is_a_tested_program() -> None:
    examples = [client.example.read_text("utf-8") for client in CLIENTS if client.example]
    settings, *blocks = code_blocks(clients_page.PAGE, ROOT)
    assert settings.code.startswith("export OPENAI_BASE_URL=")
    assert [block.code for block in blocks] == examples


def test_every_python_client_has_an_example() -> None:
    assert [client.name for client in CLIENTS if not client.is_node and not client.example] == []
