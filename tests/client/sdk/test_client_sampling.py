"""Sampling options in requests; choices and log probabilities in responses."""

from __future__ import annotations

import json
from typing import Any

from tests.client.blocking_clients import AnyClient
from tests.client.scripted_server import ScriptedServer, event, returns, streams

OPTIONS: dict[str, Any] = {
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.2,
    "min_tokens": 3,
    "stop_token_ids": [2, 7],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "json_object"},
    "guided_regex": "a+",
    "guided_choice": ["a", "b"],
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "service_tier": "flex",
    "continue_final_message": True,
    "cache_scope": "public",
}
LOGPROBS = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0}]}]


def choice(index: int, text: str, **fields: Any) -> dict[str, Any]:
    return {"index": index, "message": {"content": text}, "finish_reason": "stop", **fields}


def test_options_are_sent_unchanged(client: AnyClient, server: ScriptedServer) -> None:
    client.chat("Hello?", logit_bias={42: -100}, **OPTIONS)
    assert {name: server.last_body[name] for name in OPTIONS} == OPTIONS
    assert server.last_body["logit_bias"] == {"42": -100}


def test_choices_are_ordered_and_the_first_is_the_text(client: AnyClient, server: ScriptedServer) -> None:
    completion = {"choices": [choice(1, "two"), choice(0, "one", logprobs={"content": LOGPROBS})]}
    server.script(returns(200, json.dumps(completion).encode(), "application/json"))

    answer = client.chat("Hello?", n=2)

    assert (answer.text, [one.text for one in answer.choices]) == ("one", ["one", "two"])
    first, second = (one.logprobs for one in answer.choices)
    assert second is None
    assert first is not None
    assert (first[0].token, first[0].logprob, first[0].bytes) == ("a", -0.5, [97])
    assert first[0].top_logprobs[0].token == "b"


def test_a_stream_yields_the_first_choice_and_records_all(client: AnyClient, server: ScriptedServer) -> None:
    def part(index: int, text: str, **fields: Any) -> bytes:
        data = {"choices": [{"index": index, "delta": {"content": text}, **fields}]}
        return event(json.dumps(data))

    scored = {"logprobs": {"content": LOGPROBS}}
    ends = [part(index, "", finish_reason="stop") for index in (1, 0)]
    parts = [part(1, "x", **scored), part(0, "a"), part(1, "y", **scored), part(0, "b")]
    server.script(streams(*parts, *ends, event("[DONE]")))

    with client.stream("Hello?", n=2) as stream:
        assert list(stream) == ["a", "b"]
        answer = stream.answer()

    assert [one.text for one in answer.choices] == ["ab", "xy"]
    assert [one.finish_reason for one in answer.choices] == ["stop", "stop"]
    logprobs = answer.choices[1].logprobs
    assert answer.choices[0].logprobs is None
    assert logprobs is not None
    assert len(logprobs) == 2
