"""Rules for /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from llava_server.api.compatibility.chat import FUNCTIONS_ONLY
from llava_server.api.compatibility.engines import CHAT_ONLY, ENGINE_FIELDS, NO_REASONING, OWN_TEMPLATE
from llava_server.api.compatibility.rule import Neutral, Only, Rules, Unsupported

__all__ = ["ANTHROPIC"]

_LABEL = Neutral("It only labels the block.")
_ACCOUNT = Neutral("It only concerns accounts and billing.")
_NO_CITATIONS = Unsupported("The model does not cite its sources.", ({"enabled": False},))
_OTHER_BLOCKS = Neutral("It has no effect in a block of this type.")
_SERVER_TOOLS = Neutral("It has no effect in a custom tool.")
_FIELDS_OF_OTHER_BLOCKS = (
    "content",
    "data",
    "id",
    "input",
    "is_error",
    "name",
    "signature",
    "source",
    "thinking",
    "tool",
    "tool_name",
    "tool_use_id",
)
_FIELDS_OF_SERVER_TOOLS = (
    "allowed_domains",
    "blocked_domains",
    "display_height_px",
    "display_number",
    "display_width_px",
    "max_uses",
)

ANTHROPIC = Rules(
    ENGINE_FIELDS,
    CHAT_ONLY,
    OWN_TEMPLATE,
    {
        "betas": Neutral("The `anthropic-beta` header is ignored too."),
        "billing_policy": _ACCOUNT,
        "compaction": Unsupported("Summarize the conversation in your client."),
        "container": Unsupported("This server does not provide containers."),
        "context_management": Neutral(
            "The server never shortens a conversation. An over-long prompt is an error."
        ),
        "diagnostics": Neutral("It only requests diagnostics."),
        "fallback_credit_token": _ACCOUNT,
        "fallbacks": Neutral("The server never falls back to another model."),
        "inference_geo": Neutral("Inference always runs where this server is deployed."),
        "logprobs": Unsupported("Use it with /v1/chat/completions.", (False, 0)),
        "max_completion_tokens": Unsupported("Use max_tokens."),
        "n_predict": Unsupported("Use max_tokens."),
        "parallel_tool_calls": Unsupported("Use tool_choice.disable_parallel_tool_use.", (True,)),
        "response_format": Unsupported("Use output_config.format."),
        "stop": Unsupported("Use stop_sequences."),
        "stream_options": Neutral("The usage is always sent."),
        "top_logprobs": Unsupported("Use it with /v1/chat/completions.", (0,)),
        "mcp_servers": Unsupported("Connect to MCP servers in your client and pass their tools in 'tools'."),
        "output_config.effort": NO_REASONING,
        "output_config.task_budget": NO_REASONING,
        "speed": Neutral("All requests run at the same speed."),
        "thinking": NO_REASONING,
        "thread": Unsupported("Send the whole conversation with each request."),
        "user_profile_id": _ACCOUNT,
        "workspace_id": _ACCOUNT,
        # blocks and tools
        "messages.**.citations": _LABEL,
        "messages.content.caller": _LABEL,
        "messages.output_config": NO_REASONING,
        "messages.content.content.transformations": Unsupported("Transform the image in your client."),
        "messages.content.toolset_name": _LABEL,
        "messages.content.transformations": Unsupported("Transform the image in your client."),
        "messages.content[type=tool_result].id": _LABEL,
        **{
            f"messages.{content}[type={kind}].citations": _NO_CITATIONS
            for content in ("content", "content.content")
            for kind in ("document", "search_result")
        },
        **{f"messages.content.{name}": _OTHER_BLOCKS for name in ("data", "signature", "thinking")},
        **{f"messages.content.{name}": _OTHER_BLOCKS for name in ("tool", "tool_name")},
        **{f"system.{name}": _OTHER_BLOCKS for name in _FIELDS_OF_OTHER_BLOCKS},
        "system.citations": _LABEL,
        "tools.type": Only(FUNCTIONS_ONLY, ("custom",)),
        **{f"tools.{name}": _SERVER_TOOLS for name in _FIELDS_OF_SERVER_TOOLS},
        "tools.allowed_callers": Unsupported("The model calls functions directly.", (["direct"],)),
    },
)
