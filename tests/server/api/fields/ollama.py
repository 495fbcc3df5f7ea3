"""Rows for the fields of Ollama's API."""

from __future__ import annotations

import base64
from typing import Any

from llava_server.api.ollama.options import OllamaOptions

from tests.server.api.fields.chat import CITY, OBJECT, TOOLS
from tests.server.api.fields.rows import (
    ABSENT,
    CoveredElsewhere,
    Differs,
    Hint,
    Ignored,
    Only,
    Row,
    RowBuilder,
    unsupported_fields,
)
from tests.server.image_files import encoded, scene
from tests.server.scripted_worker import MODEL

__all__ = ["CHAT", "EMBEDDING", "GENERATION", "ROWS"]

ONE, OTHER = (base64.b64encode(encoded(image)).decode() for image in (scene(), scene(20, 40)))
CHAT: dict[str, Any] = {
    "model": MODEL,
    "stream": False,
    "messages": [{"role": "user", "content": "say yes"}],
}
GENERATION: dict[str, Any] = {"model": MODEL, "stream": False, "prompt": "say yes"}
EMBEDDING: dict[str, Any] = {"model": MODEL, "input": ["yes", "maybe"]}
LEGACY: dict[str, Any] = {"model": MODEL, "prompt": "yes"}
CALL = {"function": {"name": "f", "arguments": {"city": "Paris"}}}
CONVERSATION: dict[str, Any] = {
    "model": MODEL,
    "stream": False,
    "tools": TOOLS,
    "messages": [
        {"role": "user", "content": "What is it?", "images": [ONE]},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "content": "18 degrees", "tool_name": "f"},
        {"role": "user", "content": "say yes"},
    ],
}
SAMPLED: dict[str, Any] = {**CHAT, "options": {"seed": 7, "repeat_penalty": 1.5}}

chat, talk = RowBuilder("/api/chat", CHAT), RowBuilder("/api/chat", CONVERSATION)
generate, embed = RowBuilder("/api/generate", GENERATION), RowBuilder("/api/embed", EMBEDDING)


def option(name: str, *values: Any) -> Differs:
    return Differs("/api/chat", SAMPLED, f"options.{name}", values)


def ignored_options() -> dict[str, Row]:
    """Return rows for the options without an effect."""
    names = {
        name for name, field in OllamaOptions.model_fields.items() if "ignored" in str(field.description)
    }
    return {f"OllamaOptions.{name}": Ignored("/api/chat", SAMPLED, f"options.{name}", 1) for name in names}


def rejected_options() -> dict[str, Row]:
    """Return rows for the options that are rejected unless their value is neutral."""
    return {
        f"OllamaOptions.{name}": Only(
            "/api/chat", {**CHAT, "options": {name: option.neutral[0]}}, f"options.{name}", 0.5
        )
        for name, option in unsupported_fields(OllamaOptions).items()
    }


def generation_fields(model: str, row: RowBuilder) -> dict[str, Row]:
    """Return rows for the fields that /api/chat and /api/generate share."""
    body = row.body
    scored = {**body, "logprobs": True}
    return {
        f"{model}.stream": row.differs("stream", True, False),
        f"{model}.format": row.differs("format", "json", CITY, OBJECT, ""),
        f"{model}.options": row.differs("options", {"temperature": 0}, {"top_k": 3}, {}),
        f"{model}.keep_alive": Ignored(row.path, body, "keep_alive", "5m"),
        f"{model}.logprobs": row.differs("logprobs", True, False),
        f"{model}.top_logprobs": Differs(row.path, scored, "top_logprobs", (0, 1, 20)),
        f"{model}.truncate": row.hint("truncate", True, "yes"),
        f"{model}.shift": row.hint("shift", False, "yes"),
        f"{model}._debug_render_only": row.hint("_debug_render_only", False, True),
    }


ROWS: dict[str, Row] = {
    **generation_fields("OllamaChatRequest", chat),
    **generation_fields("GenerateRequest", generate),
    "OllamaChatRequest.messages": chat.differs(
        "messages", CHAT["messages"], [{"role": "user", "content": "say no"}], []
    ),
    "OllamaChatRequest.tools": chat.differs("tools", TOOLS, TOOLS[:1], []),
    "OllamaMessage.role": talk.only("messages[0].role"),
    "OllamaMessage.content": talk.differs("messages[0].content", "What is it?", "Who is it?", ABSENT),
    "OllamaMessage.images": talk.differs(
        "messages[0].images", [ONE], [OTHER], [f"data:image/png;base64,{ONE}", OTHER], None
    ),
    "OllamaMessage.thinking": talk.hint("messages[1].thinking", "A question.", 5),
    "OllamaMessage.tool_calls": talk.differs(
        "messages[1].tool_calls", [CALL], [{"function": {"name": "g", "arguments": {}}}]
    ),
    "OllamaMessage.tool_name": talk.hint("messages[2].tool_name", "g", 5),
    "OllamaMessage.tool_call_id": talk.hint("messages[2].tool_call_id", "unknown", 5),
    "OllamaToolCall.id": talk.hint("messages[1].tool_calls[0].id", "call_7", 5),
    "OllamaToolCall.function": talk.differs(
        "messages[1].tool_calls[0].function", CALL["function"], {"name": "g", "arguments": {}}
    ),
    "OllamaFunctionCall.index": Ignored(
        "/api/chat", CONVERSATION, "messages[1].tool_calls[0].function.index", 3
    ),
    "OllamaFunctionCall.name": talk.differs("messages[1].tool_calls[0].function.name", "f", "g"),
    "OllamaFunctionCall.arguments": talk.differs(
        "messages[1].tool_calls[0].function.arguments", {"city": "Paris"}, {"city": "Rome"}, {}
    ),
    "OllamaTool.type": talk.only("tools[0].type"),
    "OllamaTool.function": talk.differs("tools[0].function", TOOLS[0]["function"], {"name": "h"}),
    "GenerateRequest.prompt": generate.differs("prompt", "say yes", "say no", ""),
    "GenerateRequest.system": generate.differs("system", "Be brief.", "Be long.", ""),
    "GenerateRequest.images": generate.differs("images", [ONE], [OTHER], [ONE, OTHER], []),
    "GenerateRequest.raw": generate.differs("raw", True, False),
    "EmbedRequest.input": embed.differs("input", "yes", "maybe", ["yes", "maybe"], []),
    "EmbedRequest.dimensions": embed.differs("dimensions", 1, 2),
    "EmbedRequest.truncate": embed.hint("truncate", False, "yes"),
    "EmbedRequest.options": Ignored("/api/embed", EMBEDDING, "options", {"num_ctx": 8}),
    "EmbedRequest.keep_alive": Ignored("/api/embed", EMBEDDING, "keep_alive", 0),
    "LegacyEmbedRequest.prompt": Differs("/api/embeddings", LEGACY, "prompt", ("yes", "maybe", "")),
    "LegacyEmbedRequest.options": Ignored("/api/embeddings", LEGACY, "options", {"num_ctx": 8}),
    "LegacyEmbedRequest.keep_alive": Ignored("/api/embeddings", LEGACY, "keep_alive", "1h"),
    "ShowRequest.name": Hint("/api/show", {"model": MODEL}, "name", MODEL, 5),
    "ShowRequest.verbose": Hint("/api/show", {"model": MODEL}, "verbose", True, "yes"),
    "PullRequest.name": Hint("/api/pull", {"model": MODEL}, "name", MODEL, 5),
    "PullRequest.stream": CoveredElsewhere("test_ollama.py::test_a_served_model_can_be_pulled"),
    "PullRequest.insecure": Hint("/api/pull", {"model": MODEL}, "insecure", True, "yes"),
    "OllamaOptions.num_predict": option("num_predict", 3, 4, -1),
    "OllamaOptions.temperature": option("temperature", 0, 0.5, ABSENT),
    "OllamaOptions.top_k": option("top_k", 0, 5, ABSENT),
    "OllamaOptions.top_p": option("top_p", 0, 0.5, ABSENT),
    "OllamaOptions.min_p": option("min_p", 0.5, ABSENT),
    "OllamaOptions.typical_p": option("typical_p", 0, 0.5, ABSENT),
    "OllamaOptions.seed": CoveredElsewhere("test_ollama.py::test_a_seed_of_minus_one_is_random"),
    "OllamaOptions.stop": option("stop", ["a"], ["a", "b"], ABSENT),
    "OllamaOptions.repeat_penalty": option("repeat_penalty", 1, 1.5),
    "OllamaOptions.repeat_last_n": option("repeat_last_n", 0, -1),
    "OllamaOptions.presence_penalty": option("presence_penalty", 0, 1),
    "OllamaOptions.frequency_penalty": option("frequency_penalty", 0, 1),
    **ignored_options(),
    **rejected_options(),
}
