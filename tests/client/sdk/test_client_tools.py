"""Tool calls in complete and streamed responses."""

from __future__ import annotations

import json
from typing import Any

from llava_client import ToolCall

from tests.client.blocking_clients import AnyClient
from tests.client.scripted_server import ScriptedServer, event, returns, streams

LOOK = ToolCall(id="c1", name="look", arguments='{"at":"left"}')
POINT = ToolCall(id="c2", name="point", arguments="{}")


def as_sent(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def test_tool_calls_of_a_complete_response_are_parsed(client: AnyClient, server: ScriptedServer) -> None:
    message = {"content": None, "tool_calls": [as_sent(LOOK), as_sent(POINT)]}
    completion = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    server.script(returns(200, json.dumps(completion).encode(), "application/json"))

    answer = client.chat("Look!", tools=[{"type": "function", "function": {"name": "look"}}])

    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    assert answer.choices[0].tool_calls == (LOOK, POINT)


def test_streamed_pieces_of_tool_calls_are_joined(client: AnyClient, server: ScriptedServer) -> None:
    def part(*calls: dict[str, Any], **fields: Any) -> bytes:
        delta = {"tool_calls": list(calls)} if calls else {}
        return event(json.dumps({"choices": [{"index": 0, "delta": delta, **fields}]}))

    def piece(index: int, arguments: str) -> dict[str, Any]:
        return {"index": index, "function": {"arguments": arguments}}

    parts = [
        part({**as_sent(LOOK), "index": 0, "function": {"name": "look", "arguments": ""}}),
        part(piece(0, '{"at":')),
        part({**as_sent(POINT), "index": 1, "function": {"name": "point", "arguments": ""}}),
        part(piece(1, "{}"), piece(0, '"left"}')),
        part(finish_reason="tool_calls"),
    ]
    server.script(streams(*parts, event("[DONE]")))

    with client.stream("Look!") as stream:
        assert list(stream) == []
        answer = stream.answer()

    assert answer.choices[0].tool_calls == (LOOK, POINT)
    assert answer.finish_reason == "tool_calls"


def test_a_response_without_tool_calls_has_none(client: AnyClient, server: ScriptedServer) -> None:
    assert client.chat("Hello?").choices[0].tool_calls == ()
