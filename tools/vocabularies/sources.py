"""The request types of other servers on each route that this server has."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import openai

from vocabularies.other_languages import cpp_fields, go_fields
from vocabularies.python_types import PythonTypes, Vocabulary

__all__ = ["INSTALLED", "VOCABULARIES", "extract"]

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_RESPONSES, _MESSAGES, _COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
_EMBEDDINGS, _TOKENIZE, _DETOKENIZE = "/v1/embeddings", "/tokenize", "/detokenize"
_FILES, _BATCHES = "/v1/files", "/v1/batches"
_INPUT_TOKENS, _STORED_CHAT = "/v1/responses/input_tokens", "/v1/chat/completions/{job_id}"

# Classes by module and route.
_PYTHON: dict[str, dict[str, list[tuple[str, str]]]] = {
    "openai": {
        _CHAT: [("openai.types.chat.completion_create_params", "CompletionCreateParams")],
        _COMPLETIONS: [("openai.types.completion_create_params", "CompletionCreateParams")],
        _RESPONSES: [("openai.types.responses.response_create_params", "ResponseCreateParams")],
        _INPUT_TOKENS: [("openai.types.responses.input_token_count_params", "InputTokenCountParams")],
        _STORED_CHAT: [("openai.types.chat.completion_update_params", "CompletionUpdateParams")],
        _EMBEDDINGS: [("openai.types.embedding_create_params", "EmbeddingCreateParams")],
        _FILES: [("openai.types.file_create_params", "FileCreateParams")],
        _BATCHES: [("openai.types.batch_create_params", "BatchCreateParams")],
    },
    "anthropic": {
        _MESSAGES: [
            ("anthropic.types.message_create_params", "MessageCreateParams"),
            ("anthropic.types.beta.message_create_params", "MessageCreateParams"),
        ],
        _COUNT: [
            ("anthropic.types.message_count_tokens_params", "MessageCountTokensParams"),
            ("anthropic.types.beta.message_count_tokens_params", "MessageCountTokensParams"),
        ],
    },
    "vllm": {
        _CHAT: [("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest")],
        _COMPLETIONS: [("vllm.entrypoints.openai.completion.protocol", "CompletionRequest")],
        _RESPONSES: [("vllm.entrypoints.openai.responses.protocol", "ResponsesRequest")],
        _MESSAGES: [("vllm.entrypoints.anthropic.protocol", "AnthropicMessagesRequest")],
        _COUNT: [("vllm.entrypoints.anthropic.protocol", "AnthropicCountTokensRequest")],
        _EMBEDDINGS: [
            ("vllm.entrypoints.pooling.embed.protocol", "EmbeddingCompletionRequest"),
            ("vllm.entrypoints.pooling.embed.protocol", "EmbeddingChatRequest"),
        ],
        _TOKENIZE: [
            ("vllm.entrypoints.serve.tokenize.protocol", "TokenizeCompletionRequest"),
            ("vllm.entrypoints.serve.tokenize.protocol", "TokenizeChatRequest"),
        ],
        _DETOKENIZE: [("vllm.entrypoints.serve.tokenize.protocol", "DetokenizeRequest")],
    },
    "sglang": {
        _CHAT: [
            ("sglang.srt.entrypoints.openai.protocol", "ChatCompletionRequest"),
            ("sglang.srt.sampling.sampling_params", "SamplingParams"),
        ],
        _COMPLETIONS: [
            ("sglang.srt.entrypoints.openai.protocol", "CompletionRequest"),
            ("sglang.srt.sampling.sampling_params", "SamplingParams"),
        ],
        _RESPONSES: [("sglang.srt.entrypoints.openai.protocol", "ResponsesRequest")],
        _MESSAGES: [("sglang.srt.entrypoints.anthropic.protocol", "AnthropicMessagesRequest")],
        _COUNT: [("sglang.srt.entrypoints.anthropic.protocol", "AnthropicCountTokensRequest")],
        _EMBEDDINGS: [("sglang.srt.entrypoints.openai.protocol", "EmbeddingRequest")],
        _TOKENIZE: [("sglang.srt.entrypoints.openai.protocol", "TokenizeRequest")],
        _DETOKENIZE: [("sglang.srt.entrypoints.openai.protocol", "DetokenizeRequest")],
        _FILES: [("sglang.srt.entrypoints.openai.protocol", "FileRequest")],
        _BATCHES: [("sglang.srt.entrypoints.openai.protocol", "BatchRequest")],
    },
}
# Attributes that SGLang's SamplingParams computes from the request's fields.
_COMPUTED = {
    "stop_strs",
    "stop_regex_strs",
    "stop_str_max_len",
    "stop_regex_max_len",
    "is_normalized",
    "ebnf_full_assistant",
}

# Functions by file and route.
_SCHEMA = ("server-schema.cpp", "make_llama_cmpl_schema(")
_CHAT_PARAMS = ("server-common.cpp", "json oaicompat_chat_params_parse(")
_TASK = ("server-context.cpp", "server_routes::handle_completions_impl(")
_LLAMA_CPP: dict[str, list[tuple[str, str]]] = {
    _CHAT: [_SCHEMA, _CHAT_PARAMS, _TASK],
    _COMPLETIONS: [_SCHEMA, ("server-common.cpp", "json oaicompat_completion_params_parse("), _TASK],
    _RESPONSES: [("server-chat.cpp", "server_chat_convert_responses_to_chatcmpl("), _SCHEMA, _CHAT_PARAMS],
    _MESSAGES: [("server-chat.cpp", "server_chat_convert_anthropic_to_oai("), _SCHEMA, _CHAT_PARAMS],
    _EMBEDDINGS: [("server-context.cpp", "server_routes::handle_embeddings_impl(")],
    _TOKENIZE: [("server-context.cpp", "this->post_tokenize =")],
    _DETOKENIZE: [("server-context.cpp", "this->post_detokenize =")],
}

# Structs by file and route.
_OLLAMA_ROUTES: dict[str, str] = {
    "/api/chat": "ChatRequest",
    "/api/generate": "GenerateRequest",
    "/api/embed": "EmbedRequest",
}
_OLLAMA: dict[str, tuple[str, str]] = {
    _CHAT: ("openai/openai.go", "ChatCompletionRequest"),
    _COMPLETIONS: ("openai/openai.go", "CompletionRequest"),
    _EMBEDDINGS: ("openai/openai.go", "EmbedRequest"),
    _RESPONSES: ("openai/responses.go", "ResponsesRequest"),
    _MESSAGES: ("anthropic/anthropic.go", "MessagesRequest"),
}

INSTALLED = ("openai", "anthropic")  # packages in the development environment
VOCABULARIES = (*_PYTHON, "llama.cpp", "ollama")
_SITE = Path(openai.__file__).parents[1]


def extract(name: str, folder: Path, is_closed: Callable[[str, str], bool]) -> dict[str, Vocabulary]:
    """Return the vocabulary of each route from the sources in a folder.

    Fields of objects for which ``is_closed(route, path)`` is true are left out. Raises OSError or LookupError
    if the folder does not contain the sources.
    """
    if name == "llama.cpp":
        server = folder / "llama.cpp" / "tools" / "server"
        return {
            route: {key: set() for part in parts for key in cpp_fields(server / part[0], part[1])}
            for route, parts in _LLAMA_CPP.items()
        }
    if name == "ollama":
        server = folder / "ollama-server"
        compatible = {route: go_fields(server / file, each) for route, (file, each) in _OLLAMA.items()}
        return compatible | _ollama_routes(folder)
    types = PythonTypes(folder, _SITE)
    found: dict[str, Vocabulary] = {}
    for route, classes in _PYTHON[name].items():
        vocabulary = found.setdefault(route, {})
        for module, each in classes:
            for path, values in types.vocabulary(module, each, partial(is_closed, route)).items():
                if path not in _COMPUTED:
                    vocabulary.setdefault(path, set()).update(values)
    if _FILES in found:
        found[_FILES] = _as_form(found[_FILES])
    return found


def _as_form(vocabulary: Vocabulary) -> Vocabulary:
    """Return the names of the form fields in which a client sends these fields: ``a[b]`` for ``a.b``."""
    owners = {path.partition(".")[0] for path in vocabulary if "." in path}
    return {
        re.sub(r"\.(\w+)", r"[\1]", path): values for path, values in vocabulary.items() if path not in owners
    }


def _ollama_routes(folder: Path) -> dict[str, Vocabulary]:
    """Return the vocabulary of Ollama's own routes, from its server and from its Python package."""
    source, types = folder / "ollama-server" / "api" / "types.go", PythonTypes(folder)
    options = go_fields(source, "Options") | types.vocabulary("ollama._types", "Options")
    return {
        route: go_fields(source, name)
        | types.vocabulary("ollama._types", name, _is_image)
        | {f"options.{option}": set() for option in options}
        for route, name in _OLLAMA_ROUTES.items()
    }


def _is_image(path: str) -> bool:
    """Return whether a field contains images. The Python package sends each image as a string."""
    return path.split(".")[-1] == "images"
