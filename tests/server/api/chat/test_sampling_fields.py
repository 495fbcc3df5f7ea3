"""Sampling fields reach the worker, or are rejected with the field's name, value and limit."""

from __future__ import annotations

import json
from typing import Any

from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

# (field, value in the request, name in the job, value in the job)
VALID: list[tuple[str, Any, str, Any]] = [
    ("temperature", 2, "temperature", 2.0),
    ("temperature", -0.0, "temperature", 0.0),
    ("top_k", 40, "top_k", 40),
    ("top_k", -1, "top_k", 0),
    ("top_k", 2**31 - 1, "top_k", 2**31 - 1),
    ("min_p", 0.25, "min_p", 0.25),
    ("presence_penalty", -2, "presence_penalty", -2.0),
    ("frequency_penalty", 1.5, "frequency_penalty", 1.5),
    ("frequency_penalty", -0.0, "frequency_penalty", 0.0),
    ("repetition_penalty", 1.3, "repetition_penalty", 1.3),
    ("repetition_penalty", 1e-308, "repetition_penalty", 1e-308),
    ("logit_bias", {"42": -100, "0": 0.5}, "logit_bias", ((42, -100.0), (0, 0.5))),
    ("logit_bias", {}, "logit_bias", ()),
    ("min_tokens", 5, "min_tokens", 5),
    ("stop_token_ids", [2, 7], "stop_token_ids", (2, 7)),
    ("logprobs", True, "num_logprobs", 0),
    ("logprobs", False, "num_logprobs", None),
    ("top_logprobs", 0, "num_logprobs", None),
    ("n", 1, "num_logprobs", None),
]


def test_field_reaches_the_worker(stack: Stack) -> None:
    for field, value, name, expected in VALID:
        assert stack.chat("say x", **{field: value}).status_code == 200, (field, value)
        assert getattr(stack.worker.assignments[-1].job.sampling, name) == expected, (field, value)


def test_null_fields_have_no_effect(stack: Stack) -> None:
    stack.chat("say x", seed=1)
    stack.chat("say x", seed=1, **{field: None for field, *_ in VALID})
    first, second = (assignment.job.sampling for assignment in stack.worker.assignments[-2:])
    assert first == second


def test_cache_scope_reaches_the_worker(stack: Stack) -> None:
    for scope in (None, "tenant", "public"):
        assert stack.chat("say x", cache_scope=scope).status_code == 200
        assert stack.worker.assignments[-1].job.cache_scope == (scope or "tenant")


NAN, INF = float("nan"), float("inf")
# (request fields, param of the error, part of the error message)
OUT_OF_BOUNDS: list[tuple[dict[str, Any], str, str]] = [
    ({"cache_scope": "all"}, "cache_scope", "'tenant' or 'public'"),
    ({"top_k": -2}, "top_k", "greater than or equal to -1 (got -2)"),
    ({"top_k": 2**63}, "top_k", "less than or equal to 2147483647 (got 9223372036854775808)"),
    ({"top_k": 0.5}, "top_k", "valid integer"),
    ({"min_p": -0.1}, "min_p", "greater than or equal to 0 (got -0.1)"),
    ({"min_p": NAN}, "min_p", "finite"),
    ({"min_p": 1.1}, "min_p", "less than or equal to 1 (got 1.1)"),
    ({"presence_penalty": 2.1}, "presence_penalty", "less than or equal to 2 (got 2.1)"),
    ({"presence_penalty": NAN}, "presence_penalty", "finite"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "greater than or equal to -2 (got -2.1)"),
    ({"frequency_penalty": 1e308}, "frequency_penalty", "less than or equal to 2 (got 1e+308)"),
    ({"frequency_penalty": True}, "frequency_penalty", "got true"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"repetition_penalty": -0.0}, "repetition_penalty", "greater than 0"),
    ({"repetition_penalty": INF}, "repetition_penalty", "finite"),
    ({"repetition_penalty": 2.01}, "repetition_penalty", "less than or equal to 2"),
    ({"logit_bias": {"5": 100.5}}, "logit_bias.5", "less than or equal to 100 (got 100.5)"),
    ({"logit_bias": {"5": NAN}}, "logit_bias.5", "finite"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5", "valid number (got '1')"),
    ({"logit_bias": {"five": 1}}, "logit_bias", "the invalid key 'five'. Keys must be token IDs"),
    ({"logit_bias": {"05": 1}}, "logit_bias", "'05'"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "'-1'"),
    ({"logit_bias": {"\u0665": 1}}, "logit_bias", r"'\u0665'"),
    ({"logit_bias": {str(2**63): 1}}, "logit_bias", "9223372036854775808"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "9..."),
    ({"logit_bias": {str(key): 1 for key in range(301)}}, "logit_bias", "at most 300"),
    ({"logit_bias": [1]}, "logit_bias", "object"),
    ({"min_tokens": -1}, "min_tokens", "got -1"),
    ({"min_tokens": 2**63}, "min_tokens", "2147483647"),
    ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "min_tokens (6) must not exceed max_tokens (5)"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "got -1"),
    ({"stop_token_ids": [1, 2**31]}, "stop_token_ids[1]", "2147483647"),
    ({"stop_token_ids": list(range(17))}, "stop_token_ids", "at most 16"),
    ({"stop_token_ids": 5}, "stop_token_ids", "array"),
    ({"logprobs": 1}, "logprobs", "boolean"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20 (got 21)"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "got -1"),
    ({"top_logprobs": 5}, "top_logprobs", "top_logprobs is 5, but it is only allowed if logprobs is true"),
    ({"n": 0}, "n", "greater than or equal to 1 (got 0)"),
    ({"n": 17}, "n", "less than or equal to 16 (got 17)"),
    ({"n": 2**63}, "n", "less than or equal to 16"),
    ({"n": True}, "n", "integer"),
]


def test_an_out_of_bounds_value_is_a_400_and_the_next_request_works(stack: Stack) -> None:
    for fields, param, words in OUT_OF_BOUNDS:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "say x"}], **fields}
        response = stack.http.post(
            "/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert error["code"] in ("invalid_value", "invalid_type"), error
        assert words in error["message"], error
        assert stack.works(), fields
