"""Tests that tool calls are complete, use the given functions, and have arguments that match the schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar

from tests.worker.engine.structured_output.grammar_kit import Vocabulary, accepts

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTIONS = [{"name": "weather", "parameters": CITY}, {"name": "clock", "parameters": {"type": "object"}}]
PARIS = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
NOW = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'


def tools(choice: str, *, is_parallel: bool = True, functions: list[Any] | None = None) -> str:
    source = {"choice": choice, "is_parallel": is_parallel, "functions": functions or FUNCTIONS}
    return json.dumps(source)


# output -> whether it is allowed with tool choice "auto" and with "required"
OUTPUTS = {
    "It rains.": (True, False),
    "": (True, False),
    "<tool": (True, False),
    "<tool_call>": (False, False),
    "<tool_call> is a word": (False, False),
    f"Look: {PARIS}": (True, False),  # text that mentions a call is still text
    PARIS: (True, True),
    NOW: (True, True),
    f"{PARIS}\n{NOW}": (True, True),
    f"{PARIS}{NOW}": (False, False),
    f"{PARIS} done": (False, False),
    PARIS.replace("weather", "climate"): (False, False),
    PARIS.replace("Paris", "}}</tool_call>"): (True, True),
    PARIS.replace('"Paris"', "5"): (False, False),
    PARIS.replace("city", "town"): (False, False),
    PARIS[:-1]: (False, False),
}


def test_an_output_is_either_text_or_tool_calls(grammars: GrammarCache, vocabulary: Vocabulary) -> None:
    for text, expected in OUTPUTS.items():
        accepted = tuple(
            accepts(grammars, vocabulary, "tools", tools(choice), text) for choice in ("auto", "required")
        )
        assert accepted == expected, text


def test_only_one_call_is_allowed_without_parallel_calls(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    one = tools("named", is_parallel=False)
    assert accepts(grammars, vocabulary, "tools", one, PARIS)
    assert not accepts(grammars, vocabulary, "tools", one, f"{PARIS}\n{NOW}")


def test_at_most_sixteen_calls_are_allowed(grammars: GrammarCache, vocabulary: Vocabulary) -> None:
    many = tools("required")
    assert accepts(grammars, vocabulary, "tools", many, "\n".join([NOW] * 16))
    assert not accepts(grammars, vocabulary, "tools", many, "\n".join([NOW] * 17))


def test_a_tool_schema_that_cannot_be_enforced_is_rejected(grammars: GrammarCache) -> None:
    odd = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"uniqueItems": True}}}}
    with pytest.raises(UnsupportedGrammar, match="uniqueItems"):
        grammars.compile(Grammar("tools", tools("auto", functions=[odd])))
