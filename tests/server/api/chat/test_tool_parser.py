"""The tool call parser returns the same result no matter how the output is split."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_server.api.tools.parser import TextDelta, ToolCallDelta, ToolCallParser, ToolCallStart


def call(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def parse(*texts: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the text and the tool calls (name, arguments)."""
    parser = ToolCallParser()
    content = ""
    calls: list[tuple[str, str]] = []
    for delta in [*[delta for text in texts for delta in parser.feed(text)], *parser.feed("", is_last=True)]:
        if isinstance(delta, TextDelta):
            content += delta.text
        elif isinstance(delta, ToolCallStart):
            assert delta.index == len(calls)
            calls.append((delta.name, ""))
        else:
            assert isinstance(delta, ToolCallDelta)
            assert delta.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    assert parser.num_calls == len(calls)
    return content, calls


TRICKY = '{"a":"}</tool_call>\\\\\\"}{","b":[{"c":{}}],"d":"\\\\"}'
OUTPUTS = {
    "a red circle": ("a red circle", []),
    "": ("", []),
    "<": ("<", []),
    "<tool_call": ("<tool_call", []),
    "<tool calls are odd": ("<tool calls are odd", []),
    f"see {call('f', '{}')}": (f"see {call('f', '{}')}", []),
    call("f", "{}"): ("", [("f", "{}")]),
    call("get-it_2", TRICKY): ("", [("get-it_2", TRICKY)]),
    call("f", '{"x":1}') + "\n" + call("g", TRICKY): ("", [("f", '{"x":1}'), ("g", TRICKY)]),
    call("f", '{"x":1}')[: -len("1}}</tool_call>")]: ("", [("f", '{"x":')]),  # truncated by max_tokens
}


def test_an_output_is_text_or_calls() -> None:
    for text in OUTPUTS:
        assert parse(text) == OUTPUTS[text], text


@pytest.mark.parametrize("text", OUTPUTS)
@given(data=st.data())
def test_the_result_does_not_depend_on_how_the_output_is_split(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert parse(*[text[a:b] for a, b in pairwise([0, *cuts, len(text)])]) == OUTPUTS[text]
    assert parse(*text) == OUTPUTS[text]


@given(arguments=st.dictionaries(st.text(), st.text() | st.lists(st.text()) | st.none()))
def test_arguments_with_any_strings_are_preserved(arguments: dict[str, object]) -> None:
    text = json.dumps(arguments)
    assert parse(*(call("f", text) + "\n" + call("g", "{}"))) == ("", [("f", text), ("g", "{}")])


def test_arguments_are_returned_as_soon_as_they_arrive() -> None:
    parser = ToolCallParser()
    deltas = parser.feed('<tool_call>{"name": "f", "arguments": {"ci')
    assert deltas == [ToolCallStart(0, "f"), ToolCallDelta(0, '{"ci')]
    assert parser.feed('ty":1') == [ToolCallDelta(0, 'ty":1')]
    assert parser.feed("}") == [ToolCallDelta(0, "}")]
    assert parser.feed("}</tool_call>") == []
