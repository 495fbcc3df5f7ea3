"""Fields that the request models do not define yet. A test fails if one of them is defined."""

from __future__ import annotations

__all__ = ["IN_OTHER_BRANCHES"]

_SAMPLING = (
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "include_stop_str_in_output",
    "n_predict",
    "prompt_logprobs",
    "repeat_penalty",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
    "typical_p",
)
_GRAMMARS = ("ebnf", "grammar", "json_schema", "regex", "structural_tag")
_IMAGE = "content[type=input_image].file_id"

IN_OTHER_BRANCHES: set[tuple[str, str]] = {
    *((route, name) for route in ("/v1/chat/completions", "/v1/completions") for name in _SAMPLING),
    *((route, name) for route in ("/v1/chat/completions", "/v1/completions") for name in _GRAMMARS),
    ("/tokenize", "messages[role=assistant].prefix"),
    ("/v1/chat/completions", "messages[role=assistant].prefix"),
    ("/v1/chat/completions", "store"),
    ("/v1/embeddings", "cache_salt"),
    ("/v1/responses", "conversation"),
    ("/v1/responses", "conversation.id"),
    ("/v1/responses", "previous_response_id"),
    ("/v1/responses", f"input[type=message].{_IMAGE}"),
    ("/v1/responses", "input[type=function_call_output].output[type=input_image].file_id"),
}
