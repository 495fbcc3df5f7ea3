"""Tests that tool calls are complete, use the given functions, and have arguments that match the schema."""

from __future__ import annotations

import json
from typing import Any

import msgspec
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


SCENE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
# response format -> (accepted responses, rejected responses)
FORMATS: dict[Grammar, tuple[list[str], list[str]]] = {
    Grammar("json_schema", json.dumps(SCENE)): (['{"n": 1}'], ['{"n": "x"}', "text", ""]),
    Grammar("json_object"): (["{}"], ["[]", "text"]),
    Grammar("regex", "[<>a-z_]+|.{40}.*"): (["<tool", "<toolbox>", "a"], ["A", "<tool_call>", PARIS[:-1]]),
    Grammar("choice", '["yes", "<tool_call>"]'): (["yes"], ["no", "<tool_call>"]),
    Grammar("gbnf", 'root ::= "<" [a-z]+ ">"'): (["<toolbox>", "<tool>"], ["<t", "<T>"]),
    Grammar("gbnf", 'root ::= "<" root ">" | "too"'): (["<too>", "<<too>>", "too"], ["<too", "<<too>"]),
}


def test_an_output_is_either_a_response_in_the_format_or_tool_calls(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    for response, (accepted, rejected) in FORMATS.items():
        source = {**json.loads(tools("auto")), "response": msgspec.to_builtins(response)}
        for text in (*accepted, PARIS, f"{PARIS}\n{NOW}"):
            assert accepts(grammars, vocabulary, "tools", json.dumps(source), text), (response, text)
        for text in (*rejected, PARIS.replace("city", "town"), f"{PARIS} done"):
            assert not accepts(grammars, vocabulary, "tools", json.dumps(source), text), (response, text)
        source["choice"] = "required"
        assert accepts(grammars, vocabulary, "tools", json.dumps(source), PARIS)
        assert not accepts(grammars, vocabulary, "tools", json.dumps(source), accepted[0])


def test_a_response_format_that_cannot_be_enforced_is_reported_with_its_own_field(
    grammars: GrammarCache,
) -> None:
    response = Grammar("json_schema", '{"uniqueItems": true}', param="text.format.schema")
    source = {**json.loads(tools("auto")), "response": msgspec.to_builtins(response)}
    with pytest.raises(UnsupportedGrammar, match="uniqueItems") as raised:
        grammars.compile(Grammar("tools", json.dumps(source)))
    assert raised.value.param == "text.format.schema"
    assert raised.value.client_message("tools").startswith("The JSON schema cannot be enforced: the keyword")
    response = Grammar("json_schema", '{"uniqueItems": true}', is_strict=False)
    source["response"] = msgspec.to_builtins(response)
    grammars.compile(Grammar("tools", json.dumps(source)))
