"""Rules for /v1/responses."""

from __future__ import annotations

from llava_server.api.compatibility.chat import FUNCTIONS_ONLY, TEXT_ONLY
from llava_server.api.compatibility.engines import CHAT_ONLY, ENGINE_FIELDS, NO_REASONING, OWN_TEMPLATE
from llava_server.api.compatibility.rule import Neutral, Only, Rules, Unsupported

__all__ = ["RESPONSES"]

_NO_SERVER_TOOLS = Neutral("It only concerns tools that run on the server, and this server has none.")
_NEVER_SHORTENED = Neutral("The server never shortens a conversation. An over-long input is an error.")
_LABEL = Neutral("It only labels the item.")
_ONE_NAMESPACE = Unsupported("Use tool names without a namespace.")

RESPONSES = Rules(
    ENGINE_FIELDS,
    CHAT_ONLY,
    OWN_TEMPLATE,
    {
        "access_programs": Unsupported("Omit it."),
        "background_options.completion_window": Neutral("It only affects when the response is generated."),
        "background_options.*": Unsupported("Omit it."),
        "conversation": Unsupported("Use previous_response_id."),
        "context_management": _NEVER_SHORTENED,
        "enable_response_messages": Unsupported("Use return_token_ids with /v1/chat/completions.", (False,)),
        "image.context_compression": Unsupported("Images are never compressed.", ("auto", "disabled")),
        "image.*": Unsupported(TEXT_ONLY),
        "max_tool_calls": _NO_SERVER_TOOLS,
        "modalities": Unsupported(TEXT_ONLY, (["text"],)),
        "moderation": Unsupported("Moderate content in your client."),
        "personality": Unsupported("Describe the personality in instructions."),
        "previous_input_messages": Unsupported("Send the whole conversation as input."),
        "prompt": Unsupported("Prompt templates are not stored. Send the text as input."),
        "prompt_cache_options.prewarm": Unsupported("Prompt caching is automatic.", (False,)),
        "prompt_cache_options.*": Neutral("Prompt caching is automatic."),
        "reasoning": NO_REASONING,
        "text.verbosity": Neutral("Ask for a shorter or longer response in the input."),
        "truncation": _NEVER_SHORTENED,
        # other names
        "logprobs": Unsupported("Use include with message.output_text.logprobs.", (False, 0)),
        "max_completion_tokens": Unsupported("Use max_output_tokens."),
        "max_tokens": Unsupported("Use max_output_tokens."),
        "messages": Unsupported("Use input."),
        "n_predict": Unsupported("Use max_output_tokens."),
        "response_format": Unsupported("Use text.format."),
        # items and tools
        "input.content.annotations": _LABEL,
        "input.content.logprobs": _LABEL,
        "input.content.prompt_cache_breakpoint": Neutral("Prompt caching is automatic."),
        "input.output.prompt_cache_breakpoint": Neutral("Prompt caching is automatic."),
        "input.async": Neutral("The item contains the result."),
        "input.caller": _LABEL,
        "input[type=function_call_output].created_by": _LABEL,
        **{f"input[type=reasoning].{name}": NO_REASONING for name in ("content", "encrypted_content")},
        **{f"input[type=reasoning].{name}": NO_REASONING for name in ("id", "status", "summary")},
        "input[type=function_call].namespace": _ONE_NAMESPACE,
        "input[type=function_call_output].name": _LABEL,
        "input[type=function_call_output].namespace": _LABEL,
        "tools.type": Only(FUNCTIONS_ONLY, ("function",)),
        "tools.allowed_callers": Unsupported("The model calls functions directly.", (["direct"],)),
        "tools.async": Unsupported("Calls end the response, and your client sends the result.", (False,)),
        "tools.defer_loading": Neutral("The definitions of all tools are in the prompt."),
        "tools.format": Unsupported(FUNCTIONS_ONLY),
        "tools.tools": Unsupported(FUNCTIONS_ONLY),
        "tools.output_schema": Neutral("It only describes the result."),
    },
)
