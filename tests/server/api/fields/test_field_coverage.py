"""Each field of a chat request has a row here that tests its effect, its limits or its rejection.

The first test fails if a new field has no row. The second one fails if OpenAI's API has a field that this
server does not recognize.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from llava_server.api.chat.request import ChatRequest
from llava_wire.messages.job import Job

from tests.server.api.fields.rows import unsupported_fields
from tests.server.api.sse_lines import events_of
from tests.server.conftest import Stack
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL

USER = {"role": "user", "content": "say yes"}
TOOL = {"type": "function", "function": {"name": "f"}}


class Effect(NamedTuple):
    """Request fields, and the resulting value in the job."""

    fields: dict[str, Any]
    seen: Callable[[Job], Any]
    value: Any


def sampled(name: str, sent: Any, received: Any, **others: Any) -> Effect:
    fields = {**others, name: sent}
    return Effect(fields, lambda job: getattr(job.sampling, JOB_NAMES.get(name, name)), received)


JOB_NAMES = {
    "max_completion_tokens": "max_tokens",
    "logprobs": "num_logprobs",
    "top_logprobs": "num_logprobs",
    "repeat_penalty": "repetition_penalty",
    "n_predict": "max_tokens",
    "prompt_logprobs": "num_prompt_logprobs",
}


def constrained(name: str, value: Any, kind: str) -> Effect:
    def seen(job: Job) -> Any:
        return job.sampling.grammar and job.sampling.grammar.kind

    return Effect({name: value}, seen, kind)


def calls(name: str) -> Callable[[Job], Any]:
    """Return a function that reads a value from a job's tool grammar.

    The function returns None if the job has no tool grammar.
    """

    def seen(job: Job) -> Any:
        grammar = job.sampling.grammar
        return json.loads(grammar.text)[name] if grammar is not None and grammar.kind == "tools" else None

    return seen


ON_THE_JOB: dict[str, Effect] = {
    "model": Effect({}, lambda job: job.model, MODEL),
    "messages": Effect({}, lambda job: [message.role for message in job.messages], ["user"]),
    "max_tokens": sampled("max_tokens", 7, 7),
    "max_completion_tokens": sampled("max_completion_tokens", 7, 7),
    "temperature": sampled("temperature", 0.5, 0.5),
    "top_p": sampled("top_p", 0.5, 0.5),
    "top_k": sampled("top_k", 5, 5),
    "min_p": sampled("min_p", 0.5, 0.5),
    "presence_penalty": sampled("presence_penalty", 1.5, 1.5),
    "frequency_penalty": sampled("frequency_penalty", 1.5, 1.5),
    "repetition_penalty": sampled("repetition_penalty", 1.5, 1.5),
    "repeat_penalty": sampled("repeat_penalty", 1.5, 1.5),
    "typical_p": sampled("typical_p", 0.5, 0.5),
    "allowed_token_ids": sampled("allowed_token_ids", [5, 6], (5, 6)),
    "bad_words": sampled("bad_words", ["a b"], ("a b",)),
    "n_predict": sampled("n_predict", 7, 7),
    "include_stop_str_in_output": sampled("include_stop_str_in_output", True, True),
    "skip_special_tokens": sampled("skip_special_tokens", False, False),
    "prompt_logprobs": sampled("prompt_logprobs", 2, 2),
    "return_token_ids": Effect({"return_token_ids": True}, lambda job: job.returns_token_ids, True),
    "return_tokens_as_token_ids": Effect(
        {"return_tokens_as_token_ids": True}, lambda job: job.names_tokens_by_id, True
    ),
    "truncate_prompt_tokens": Effect(
        {"truncate_prompt_tokens": -1}, lambda job: job.truncate_prompt_tokens, -1
    ),
    "cache_salt": Effect({"cache_salt": "s"}, lambda job: job.cache_salt, "s"),
    "logit_bias": sampled("logit_bias", {"5": -1}, ((5, -1.0),)),
    "min_tokens": sampled("min_tokens", 3, 3),
    "stop_token_ids": sampled("stop_token_ids", [3], (3,)),
    "stop": sampled("stop", "x", ("x",)),
    "seed": sampled("seed", 3, 3),
    "logprobs": sampled("logprobs", True, 0),
    "top_logprobs": sampled("top_logprobs", 2, 2, logprobs=True),
    "ignore_eos": sampled("ignore_eos", True, True),
    "response_format": constrained("response_format", {"type": "json_object"}, "json_object"),
    "guided_json": constrained("guided_json", {}, "json_schema"),
    "guided_regex": constrained("guided_regex", "a", "regex"),
    "guided_choice": constrained("guided_choice", ["a"], "choice"),
    "guided_grammar": constrained("guided_grammar", "root ::=", "gbnf"),
    "structured_outputs": constrained("structured_outputs", {"json_object": True}, "json_object"),
    "json_schema": constrained("json_schema", {}, "json_schema"),
    "grammar": constrained("grammar", "root ::=", "gbnf"),
    "regex": constrained("regex", "a", "regex"),
    "ebnf": constrained("ebnf", "root ::=", "gbnf"),
    "tools": Effect({"tools": [TOOL]}, calls("choice"), "auto"),
    "tool_choice": Effect({"tools": [TOOL], "tool_choice": "required"}, calls("choice"), "required"),
    "parallel_tool_calls": Effect(
        {"tools": [TOOL], "parallel_tool_calls": False}, calls("is_parallel"), False
    ),
    "cache_scope": Effect({"cache_scope": "public"}, lambda job: job.cache_scope, "public"),
    "priority": Effect({"priority": 1}, lambda job: job.priority, -1),
    "service_tier": Effect({"service_tier": "flex"}, lambda job: job.priority, -1),
    "continue_final_message": Effect(
        {"messages": [USER, {"role": "assistant", "content": "say no"}], "continue_final_message": True},
        lambda job: job.form,
        "continued",
    ),
    "add_generation_prompt": Effect({"add_generation_prompt": True}, lambda job: job.form, "chat"),
}

# Fields that affect the response. Each is tested below.
IN_THE_RESPONSE = {"n", "stream", "stream_options"}

# Fields that affect only what is stored. Tested in test_stored_chats.py.
STORED = {"store"}

# Fields that are validated but have no effect: {field: (accepted value, rejected value)}.
HINTS: dict[str, tuple[Any, Any]] = {
    "user": ("u" * 1024, "u" * 1025),
    "spaces_between_special_tokens": (False, "no"),
    "safety_identifier": ("u" * 1024, "u" * 1025),
    "prompt_cache_key": ("u" * 1024, "u" * 1025),
    "prompt_cache_retention": ("24h", "1h"),
    "metadata": ({f"{n}".zfill(64): "v" * 512 for n in range(16)}, {"k": "v" * 513}),
}


def test_every_field_has_a_row() -> None:
    covered = [*ON_THE_JOB, *IN_THE_RESPONSE, *STORED, *HINTS, *unsupported_fields(ChatRequest)]
    assert sorted(covered) == sorted(field.alias or name for name, field in ChatRequest.model_fields.items())


def test_a_field_changes_the_job(stack: Stack) -> None:
    body = {"model": MODEL, "messages": [USER]}
    for name, effect in ON_THE_JOB.items():
        stack.http.post("/v1/chat/completions", json=body)
        response = stack.http.post("/v1/chat/completions", json={**body, **effect.fields})
        assert response.status_code == 200, (name, response.text)
        plain, changed = (assignment.job for assignment in stack.worker.assignments[-2:])
        assert effect.seen(changed) == effect.value, name
        if name not in ("model", "messages", "add_generation_prompt"):
            assert effect.seen(plain) != effect.value, name


def test_n_sets_the_number_of_choices(stack: Stack) -> None:
    assert len(stack.chat("say yes", n=3).json()["choices"]) == 3


def test_stream_true_sends_events(stack: Stack) -> None:
    assert events_of(stack.chat("say yes", stream=True))[-1] == (None, "[DONE]")


def test_usage_is_sent_at_the_end_or_with_every_chunk(stack: Stack) -> None:
    def usages(**options: bool) -> list[Any]:
        response = stack.chat("say a b c", stream=True, stream_options=options)
        return [data.get("usage") for _, data in events_of(response) if data != "[DONE]"]

    assert usages() == [None] * 5
    *during, end = usages(include_usage=True)
    assert during == [None] * 5
    assert (end["prompt_tokens"], end["completion_tokens"]) == (11, 4)
    *always, last = usages(include_usage=True, continuous_usage_stats=True)
    assert [usage["completion_tokens"] for usage in always] == [0, 1, 2, 3, 4]
    assert last == end


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"priority": 1, "service_tier": "flex"}, "service_tier"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
]


def test_conflicting_fields_are_an_error(stack: Stack) -> None:
    for fields, param in CONTRADICTIONS:
        response = stack.chat("say yes", **fields)
        assert response.status_code == 400, fields
        assert response.json()["error"]["param"].startswith(param), fields


def test_continue_final_message_cannot_be_combined_with_a_grammar(stack: Stack) -> None:
    messages = [USER, {"role": "assistant", "content": "one"}]
    fields = {"messages": messages, "continue_final_message": True, "guided_choice": ["a"]}
    assert stack.chat(**fields).json()["error"]["param"] == "continue_final_message"


def test_the_response_has_the_service_tier(stack: Stack) -> None:
    assert stack.chat("say yes").json()["service_tier"] == "default"
    assert stack.chat("say yes", service_tier="flex").json()["service_tier"] == "flex"


def test_every_detail_is_valid_for_a_model_with_one_resolution(stack: Stack) -> None:
    for detail in (None, "auto", "low", "high"):
        image = part(encoded(scene()))
        image["image_url"]["detail"] = detail
        assert stack.chat([image, {"type": "text", "text": "say yes"}]).status_code == 200
        assert stack.worker.assignments[-1].job.images[0].num_tiles == 1
