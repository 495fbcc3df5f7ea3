"""Fixtures for the tests of chat templates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llava_worker.language.template_process import TemplateProcess


@pytest.fixture(scope="session")
def template_process() -> Iterator[TemplateProcess]:
    """One process for all tests, because it takes a second to import transformers."""
    process = TemplateProcess()
    yield process
    process.close()
