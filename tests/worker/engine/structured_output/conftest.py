"""A vocabulary and a grammar cache that all tests of structured output share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llava_worker.engine.structured_output.grammar_cache import GrammarCache

from tests.worker.engine.structured_output.grammar_kit import Vocabulary, open_grammars


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary()


@pytest.fixture(scope="session")
def grammars(vocabulary: Vocabulary) -> Iterator[GrammarCache]:
    cache = open_grammars(vocabulary, cpu_s=60.0)
    yield cache
    cache.close()
