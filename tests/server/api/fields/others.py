"""The fields of completions, embeddings, tokens, files and batches, and what stands in queries."""

from __future__ import annotations

from typing import Any

from llava_server.api.anthropic.request import CountTokensRequest, MessagesRequest
from llava_server.api.chat.request import ChatRequest
from llava_server.api.completions.request import CompletionRequest
from llava_server.api.embeddings.request import EmbeddingRequest
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.tokenize.request import TokenizeRequest

from tests.server.api.fields.chat import CHAT, ONE, TOOLS
from tests.server.api.fields.messages import COUNTED, SAID
from tests.server.api.fields.responses import ASKED
from tests.server.api.fields.rows import ABSENT, Differs, Hint, Row, Shown, unsupported_fields
from tests.server.api.fields.test_field_coverage import HINTS, ON_THE_JOB
from tests.server.scripted_worker import MODEL

__all__ = ["QUERIES", "REQUESTS", "ROWS", "SHARED", "UNSUPPORTED"]

COMPLETED: dict[str, Any] = {"model": MODEL, "prompt": "say yes"}
EMBEDDED: dict[str, Any] = {"model": MODEL, "input": "yes"}
TOKENIZED: dict[str, Any] = {"model": MODEL, "prompt": "yes"}
IN_TURNS: dict[str, Any] = {"model": MODEL, "messages": CHAT["messages"]}
BEGUN = {"model": MODEL, "messages": [*CHAT["messages"], {"role": "assistant", "content": "say no"}]}

# A request that is answered, for every model that asks for a served one.
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ChatRequest": ("/v1/chat/completions", CHAT),
    "CompletionRequest": ("/v1/completions", COMPLETED),
    "ResponseRequest": ("/v1/responses", ASKED),
    "MessagesRequest": ("/v1/messages", SAID),
    "CountTokensRequest": ("/v1/messages/count_tokens", COUNTED),
    "EmbeddingRequest": ("/v1/embeddings", EMBEDDED),
    "TokenizeRequest": ("/tokenize", TOKENIZED),
    "DetokenizeRequest": ("/detokenize", {"model": MODEL, "tokens": [1]}),
}

# Fields that are known and not supported: an error that names them, unless the value is neutral.
UNSUPPORTED = {
    model.__name__: unsupported_fields(model)
    for model in (
        *(ChatRequest, CompletionRequest, ResponseRequest, MessagesRequest, CountTokensRequest),
        *(EmbeddingRequest, TokenizeRequest),
    )
}

# Fields of sampling and grammar, which a plain completion shares with a chat; each with what it needs.
_IN_A_CHAT = {name: effect.fields for name, effect in ON_THE_JOB.items() if effect.fields}
SHARED: dict[str, dict[str, dict[str, Any]]] = {
    "ChatRequest": _IN_A_CHAT,
    "CompletionRequest": {**_IN_A_CHAT, "logprobs": {"logprobs": 0}},
}


def completed(place: str, *values: Any, **beside: Any) -> Differs:
    return Differs("/v1/completions", {**COMPLETED, **beside}, place, values)


def embedded(place: str, *values: Any) -> Differs:
    return Differs("/v1/embeddings", EMBEDDED, place, values)


def tokenized(place: str, *values: Any, body: dict[str, Any] = IN_TURNS) -> Differs:
    return Differs("/tokenize", body, place, values)


_IMAGE = {"type": "image_url", "image_url": {"url": ONE}}
_FOLLOWED = {"stream": True, "stream_options": {"include_usage": True}}

ROWS: dict[str, Row] = {
    "CompletionRequest.prompt": completed(
        "prompt", "say yes", "say no", ["say yes", "say no"], [5, 6], [[5]]
    ),
    "CompletionRequest.echo": completed("echo", True, False),
    "CompletionRequest.n": completed("n", 1, 2, 3),
    "CompletionRequest.stream": completed("stream", True, False),
    "CompletionRequest.stream_options": completed("stream_options", {"include_usage": True}, {}, **_FOLLOWED),
    "CompletionRequest.user": Hint("/v1/completions", COMPLETED, "user", "u", "u" * 1025),
    "EmbeddingRequest.input": embedded("input", "yes", "maybe", ["yes", "maybe"], [5], [[5], [6, 7]], _IMAGE),
    "EmbeddingRequest.encoding_format": embedded("encoding_format", "float", "base64"),
    "EmbeddingRequest.user": Hint("/v1/embeddings", EMBEDDED, "user", "u", "u" * 1025),
    "TokenizeRequest.prompt": tokenized("prompt", "yes", "no", body=TOKENIZED),
    "TokenizeRequest.messages": tokenized("messages", CHAT["messages"], BEGUN["messages"]),
    "TokenizeRequest.continue_final_message": tokenized("continue_final_message", True, False, body=BEGUN),
    "TokenizeRequest.add_generation_prompt": Hint(
        "/tokenize", IN_TURNS, "add_generation_prompt", True, False
    ),
    "TokenizeRequest.tools": tokenized("tools", TOOLS, TOOLS[:1], ABSENT),
    "TokenizeRequest.tool_choice": tokenized(
        "tool_choice", "auto", "none", body={**IN_TURNS, "tools": TOOLS}
    ),
    "TokenizeRequest.parallel_tool_calls": Hint(
        "/tokenize", {**IN_TURNS, "tools": TOOLS}, "parallel_tool_calls", False, "no"
    ),
    "DetokenizeRequest.tokens": Differs("/detokenize", {"model": MODEL}, "tokens", ([65], [66], [65, 66])),
    "FileUpload.file": Shown("test_files.py::test_a_file_is_stored_listed_read_and_deleted"),
    "FileUpload.purpose": Shown("test_files.py::test_another_purpose_is_rejected_with_the_field"),
    "BatchRequest.input_file_id": Shown(
        "test_batches.py::test_unsupported_values_are_rejected_with_the_field"
    ),
    "BatchRequest.endpoint": Shown("test_batches.py::test_unsupported_values_are_rejected_with_the_field"),
    "BatchRequest.completion_window": Shown(
        "test_batches.py::test_unsupported_values_are_rejected_with_the_field"
    ),
    "BatchRequest.metadata": Shown("test_batches.py::test_the_openai_client_runs_a_batch_from_file_to_file"),
    **{
        f"ChatRequest.{name}": Hint("/v1/chat/completions", CHAT, name, *values)
        for name, values in HINTS.items()
    },
    "ChatRequest.n": Shown("test_field_coverage.py::test_n_gives_so_many_choices"),
    "ChatRequest.stream": Shown("test_field_coverage.py::test_stream_gives_events"),
    "ChatRequest.stream_options": Shown(
        "test_field_coverage.py::test_usage_is_told_at_the_end_or_with_every_chunk"
    ),
    "ChatRequest.messages": Differs(
        "/v1/chat/completions", CHAT, "messages", (CHAT["messages"], CHAT["messages"] * 2)
    ),
    "ChatRequest.add_generation_prompt": Hint(
        "/v1/chat/completions", CHAT, "add_generation_prompt", True, False
    ),
}

# Of "METHOD path name": what stands in queries. Names in paths are tried by themselves.
QUERIES: dict[str, Shown] = {
    "GET /v1/chat/completions/{job_id} stream": Shown(
        "test_resume.py::test_a_stream_goes_on_after_the_tokens_that_the_reader_has"
    ),
    "GET /v1/chat/completions/{job_id} starting_after": Shown(
        "test_resume.py::test_a_stream_goes_on_after_the_tokens_that_the_reader_has"
    ),
    "GET /v1/chat/completions/{job_id} include_usage": Shown(
        "test_resume.py::test_a_stream_goes_on_after_the_tokens_that_the_reader_has"
    ),
    "GET /v1/responses/{response_id} stream": Shown(
        "test_responses_later.py::test_events_are_read_on_after_the_one_that_is_known"
    ),
    "GET /v1/responses/{response_id} starting_after": Shown(
        "test_responses_later.py::test_events_are_read_on_after_the_one_that_is_known"
    ),
    "GET /v1/files purpose": Shown("test_files.py::test_a_file_is_stored_listed_read_and_deleted"),
    "GET /v1/batches after": Shown("test_batches.py::test_the_list_is_paged_without_gaps"),
    "GET /v1/batches limit": Shown("test_batches.py::test_the_list_is_paged_without_gaps"),
}
