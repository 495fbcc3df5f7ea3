"""Rows for completions, embeddings, tokens, files and batches, and for query parameters."""

from __future__ import annotations

from typing import Any

from llava_server.api.anthropic.request import CountTokensRequest, MessagesRequest
from llava_server.api.chat.request import ChatRequest
from llava_server.api.completions.request import CompletionRequest
from llava_server.api.embeddings.request import EmbeddingRequest
from llava_server.api.ollama.request import GenerateRequest, OllamaChatRequest
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.tokenize.request import TokenizeRequest

from tests.server.api.fields.chat import CHAT, ONE, TOOLS
from tests.server.api.fields.messages import COUNT, MESSAGE
from tests.server.api.fields.ollama import CHAT as OLLAMA_CHAT
from tests.server.api.fields.ollama import EMBEDDING as OLLAMA_EMBEDDING
from tests.server.api.fields.ollama import GENERATION
from tests.server.api.fields.responses import RESPONSE
from tests.server.api.fields.rows import ABSENT, CoveredElsewhere, Differs, Hint, Row, unsupported_fields
from tests.server.api.fields.test_field_coverage import HINTS, ON_THE_JOB
from tests.server.scripted_worker import MODEL

__all__ = ["QUERIES", "REQUESTS", "ROWS", "SHARED", "UNSUPPORTED"]

COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "say yes"}
EMBEDDING: dict[str, Any] = {"model": MODEL, "input": "yes"}
TOKENIZATION: dict[str, Any] = {"model": MODEL, "prompt": "yes"}
WITH_MESSAGES: dict[str, Any] = {"model": MODEL, "messages": CHAT["messages"]}
CONTINUED = {"model": MODEL, "messages": [*CHAT["messages"], {"role": "assistant", "content": "say no"}]}

# The route and a valid request for each request model with a ``model`` field.
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ChatRequest": ("/v1/chat/completions", CHAT),
    "CompletionRequest": ("/v1/completions", COMPLETION),
    "ResponseRequest": ("/v1/responses", RESPONSE),
    "MessagesRequest": ("/v1/messages", MESSAGE),
    "CountTokensRequest": ("/v1/messages/count_tokens", COUNT),
    "EmbeddingRequest": ("/v1/embeddings", EMBEDDING),
    "TokenizeRequest": ("/tokenize", TOKENIZATION),
    "DetokenizeRequest": ("/detokenize", {"model": MODEL, "tokens": [1]}),
    "OllamaChatRequest": ("/api/chat", OLLAMA_CHAT),
    "GenerateRequest": ("/api/generate", GENERATION),
    "EmbedRequest": ("/api/embed", OLLAMA_EMBEDDING),
    "LegacyEmbedRequest": ("/api/embeddings", {"model": MODEL, "prompt": "yes"}),
    "ShowRequest": ("/api/show", {"model": MODEL}),
    "PullRequest": ("/api/pull", {"model": MODEL}),
}

# Unsupported fields. Any value that would have an effect is rejected with an error that names the field.
UNSUPPORTED = {
    model.__name__: unsupported_fields(model)
    for model in (
        *(ChatRequest, CompletionRequest, ResponseRequest, MessagesRequest, CountTokensRequest),
        *(EmbeddingRequest, TokenizeRequest, OllamaChatRequest, GenerateRequest),
    )
}

# Sampling and grammar fields that several request models have, each with the fields it requires.
_CHAT_FIELDS = {name: effect.fields for name, effect in ON_THE_JOB.items() if effect.fields}
SHARED: dict[str, dict[str, dict[str, Any]]] = {
    "ChatRequest": _CHAT_FIELDS,
    "CompletionRequest": {**_CHAT_FIELDS, "logprobs": {"logprobs": 0}},
    "ResponseRequest": _CHAT_FIELDS,
    "MessagesRequest": _CHAT_FIELDS,
}


def completion(location: str, *values: Any, **others: Any) -> Differs:
    return Differs("/v1/completions", {**COMPLETION, **others}, location, values)


def embedding(location: str, *values: Any) -> Differs:
    return Differs("/v1/embeddings", EMBEDDING, location, values)


def tokenization(location: str, *values: Any, body: dict[str, Any] = WITH_MESSAGES) -> Differs:
    return Differs("/tokenize", body, location, values)


_IMAGE = {"type": "image_url", "image_url": {"url": ONE}}
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}

ROWS: dict[str, Row] = {
    "CompletionRequest.prompt": completion(
        "prompt", "say yes", "say no", ["say yes", "say no"], [5, 6], [[5]]
    ),
    "CompletionRequest.echo": completion("echo", True, False),
    "CompletionRequest.n": completion("n", 1, 2, 3),
    "CompletionRequest.stream": completion("stream", True, False),
    "CompletionRequest.stream_options": completion(
        "stream_options", {"include_usage": True}, {}, **_STREAMED
    ),
    "CompletionRequest.user": Hint("/v1/completions", COMPLETION, "user", "u", "u" * 1025),
    "EmbeddingRequest.input": embedding(
        "input", "yes", "maybe", ["yes", "maybe"], [5], [[5], [6, 7]], _IMAGE
    ),
    "EmbeddingRequest.encoding_format": embedding("encoding_format", "float", "base64"),
    "EmbeddingRequest.normalize": embedding("normalize", True, False),
    "EmbeddingRequest.truncate_prompt_tokens": embedding("truncate_prompt_tokens", 3, -1, ABSENT),
    "EmbeddingRequest.cache_salt": embedding("cache_salt", "s", "t", ABSENT),
    "CompletionRequest.spaces_between_special_tokens": Hint(
        "/v1/completions", COMPLETION, "spaces_between_special_tokens", False, "no"
    ),
    "EmbeddingRequest.user": Hint("/v1/embeddings", EMBEDDING, "user", "u", "u" * 1025),
    "TokenizeRequest.prompt": tokenization("prompt", "yes", "no", body=TOKENIZATION),
    "TokenizeRequest.messages": tokenization("messages", CHAT["messages"], CONTINUED["messages"]),
    "TokenizeRequest.continue_final_message": tokenization(
        "continue_final_message", True, False, body=CONTINUED
    ),
    "TokenizeRequest.add_generation_prompt": Hint(
        "/tokenize", WITH_MESSAGES, "add_generation_prompt", True, False
    ),
    "TokenizeRequest.tools": tokenization("tools", TOOLS, TOOLS[:1], ABSENT),
    "TokenizeRequest.tool_choice": tokenization(
        "tool_choice", "auto", "none", body={**WITH_MESSAGES, "tools": TOOLS}
    ),
    "TokenizeRequest.parallel_tool_calls": Hint(
        "/tokenize", {**WITH_MESSAGES, "tools": TOOLS}, "parallel_tool_calls", False, "no"
    ),
    "DetokenizeRequest.tokens": Differs("/detokenize", {"model": MODEL}, "tokens", ([65], [66], [65, 66])),
    "FileUpload.file": CoveredElsewhere("test_files.py::test_a_file_is_stored_listed_read_and_deleted"),
    "FileUpload.purpose": CoveredElsewhere("test_files.py::test_another_purpose_is_rejected_with_the_field"),
    "FileUpload.expires_after[anchor]": CoveredElsewhere(
        "test_image_files.py::test_an_invalid_expiry_is_an_error_that_names_the_field"
    ),
    "FileUpload.expires_after[seconds]": CoveredElsewhere(
        "test_image_files.py::test_an_invalid_expiry_is_an_error_that_names_the_field"
    ),
    "ChatUpdate.metadata": CoveredElsewhere("test_stored_chats.py::test_the_metadata_is_replaced"),
    "ChatRequest.store": CoveredElsewhere(
        "test_stored_chats.py::test_only_completions_with_store_are_listed"
    ),
    "FilePart.type": CoveredElsewhere("test_image_files.py::test_files_count_toward_the_number_of_images"),
    "FilePart.file": CoveredElsewhere("test_image_files.py::test_files_count_toward_the_number_of_images"),
    "FileReference.file_id": CoveredElsewhere(
        "test_image_files.py::test_an_image_file_equals_the_same_image_as_a_url"
    ),
    "FileReference.file_data": CoveredElsewhere(
        "test_image_files.py::test_an_image_file_equals_the_same_image_as_a_url"
    ),
    "FileReference.filename": CoveredElsewhere(
        "test_image_files.py::test_an_image_file_equals_the_same_image_as_a_url"
    ),
    "FileReference.detail": CoveredElsewhere(
        "test_image_files.py::test_a_low_detail_file_is_encoded_as_one_tile"
    ),
    "BatchRequest.input_file_id": CoveredElsewhere(
        "test_batches.py::test_unsupported_values_are_rejected_with_the_field"
    ),
    "BatchRequest.endpoint": CoveredElsewhere(
        "test_batches.py::test_unsupported_values_are_rejected_with_the_field"
    ),
    "BatchRequest.completion_window": CoveredElsewhere(
        "test_batches.py::test_unsupported_values_are_rejected_with_the_field"
    ),
    "BatchRequest.metadata": CoveredElsewhere(
        "test_batches.py::test_the_openai_client_runs_a_batch_from_file_to_file"
    ),
    **{
        f"ChatRequest.{name}": Hint("/v1/chat/completions", CHAT, name, *values)
        for name, values in HINTS.items()
    },
    "ChatRequest.n": CoveredElsewhere("test_field_coverage.py::test_n_sets_the_number_of_choices"),
    "ChatRequest.stream": CoveredElsewhere("test_field_coverage.py::test_stream_true_sends_events"),
    "ChatRequest.stream_options": CoveredElsewhere(
        "test_field_coverage.py::test_usage_is_sent_at_the_end_or_with_every_chunk"
    ),
    "ChatRequest.messages": Differs(
        "/v1/chat/completions", CHAT, "messages", (CHAT["messages"], CHAT["messages"] * 2)
    ),
    "ChatRequest.add_generation_prompt": Hint(
        "/v1/chat/completions", CHAT, "add_generation_prompt", True, False
    ),
}

# Query parameters, keyed by "METHOD path name". A separate test covers path parameters.
QUERIES: dict[str, CoveredElsewhere] = {
    **{
        f"GET /v1/chat/completions {name}": CoveredElsewhere(
            "test_stored_chats.py::test_completions_are_paged_and_filtered"
        )
        for name in ("after", "limit", "order", "model")
    },
    **{
        f"GET /v1/chat/completions/{{job_id}}/messages {name}": CoveredElsewhere(
            "test_stored_chats.py::test_the_messages_are_listed_as_they_were_sent"
        )
        for name in ("after", "limit", "order")
    },
    **{
        f"GET /v1/responses/{{response_id}}/input_items {name}": CoveredElsewhere(
            "test_input_items.py::test_the_items_are_paged_in_both_orders"
        )
        for name in ("after", "limit", "order")
    },
    **{
        f"GET /v1/responses/{{response_id}}/input_items {name}": CoveredElsewhere(
            "test_input_items.py::test_image_urls_are_listed_only_if_included"
        )
        for name in ("include", "include[]")
    },
    **{
        f"GET /v1/files {name}": CoveredElsewhere("test_image_files.py::test_files_are_paged_in_both_orders")
        for name in ("after", "limit", "order")
    },
    "GET /v1/chat/completions/{job_id} stream": CoveredElsewhere(
        "test_resume.py::test_a_stream_resumes_after_the_tokens_that_the_client_has"
    ),
    "GET /v1/chat/completions/{job_id} starting_after": CoveredElsewhere(
        "test_resume.py::test_a_stream_resumes_after_the_tokens_that_the_client_has"
    ),
    "GET /v1/chat/completions/{job_id} include_usage": CoveredElsewhere(
        "test_resume.py::test_a_stream_resumes_after_the_tokens_that_the_client_has"
    ),
    "GET /v1/responses/{response_id} stream": CoveredElsewhere(
        "test_responses_later.py::test_events_are_resumed_after_a_sequence_number"
    ),
    "GET /v1/responses/{response_id} starting_after": CoveredElsewhere(
        "test_responses_later.py::test_events_are_resumed_after_a_sequence_number"
    ),
    **{
        f"GET /v1/models {name}": CoveredElsewhere(
            "test_anthropic_models.py::test_the_anthropic_list_is_paged_in_both_directions"
        )
        for name in ("after_id", "before_id", "limit")
    },
    "GET /v1/files purpose": CoveredElsewhere("test_files.py::test_a_file_is_stored_listed_read_and_deleted"),
    "GET /v1/batches after": CoveredElsewhere("test_batches.py::test_the_list_is_paged_without_gaps"),
    "GET /v1/batches limit": CoveredElsewhere("test_batches.py::test_the_list_is_paged_without_gaps"),
}
