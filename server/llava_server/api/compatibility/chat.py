"""Rules for /v1/chat/completions and for the messages and tools of /tokenize."""

from __future__ import annotations

from llava_server.api.compatibility.engines import ENGINE_FIELDS, NO_REASONING, OWN_TEMPLATE
from llava_server.api.compatibility.rule import Neutral, Only, Rule, Rules, Unsupported

__all__ = ["CHAT", "FUNCTIONS_ONLY", "MESSAGES", "TEXT_ONLY"]

TEXT_ONLY = "The model accepts text and images, but generates only text."
FUNCTIONS_ONLY = "Define the tool as a function and run it in your client."
_NO_FUNCTIONS = "Use tools and tool_choice."
_ALL_TOOLS = Neutral("The definitions of all tools are in the prompt.")
_FOR_TOOLS = Neutral("It is only used in tool messages.")
_ONLY_ASSISTANT = Unsupported("Only assistant messages can contain tool calls.")
_ONLY_CONTINUED = Unsupported("Only assistant messages can be continued.", (False,))
_OTHER_ROLES = ("system", "developer", "user", "function")

_TOOLS: dict[str, Rule] = {
    "tools.type": Only(FUNCTIONS_ONLY, ("function",)),
    "tools.defer_loading": _ALL_TOOLS,
    "tools.function.defer_loading": _ALL_TOOLS,
    "tools.function.key_order": Unsupported("Arguments are generated in the order of the schema."),
}

MESSAGES: dict[str, Rule] = {
    **_TOOLS,
    "messages.phase": Neutral("It only labels the message."),
    "messages.reasoning": NO_REASONING,
    "messages.reasoning_content": NO_REASONING,
    "messages.task": Unsupported("Describe the task in the message."),
    "messages.tools": Unsupported("Use the request's tools."),
    "messages[role=tool].name": Neutral("tool_call_id identifies the call."),
    **{f"messages[role={role}].tool_call_id": _FOR_TOOLS for role in (*_OTHER_ROLES, "assistant")},
    **{f"messages[role={role}].tool_calls": _ONLY_ASSISTANT for role in (*_OTHER_ROLES, "tool")},
    **{f"messages[role={role}].prefix": _ONLY_CONTINUED for role in (*_OTHER_ROLES, "tool")},
    "messages.content[type=thinking].closed": NO_REASONING,
    **{f"messages.content[type={kind}].text": NO_REASONING for kind in ("thinking", "reasoning")},
    **{f"messages.content[type={kind}].thinking": NO_REASONING for kind in ("thinking", "reasoning")},
    "messages.tool_calls.index": Neutral("It only numbers the calls of a stream."),
    "messages.content.prompt_cache_breakpoint": Neutral("Prompt caching is automatic."),
    "messages.content.modalities": Unsupported("Send each image as an image_url part.", ("image",)),
    "messages.content.uuid": Neutral("Images are cached by their content."),
    "messages.content.image_pil": Unsupported("Send images as image_url parts."),
    "messages.content.audio_url": Unsupported(TEXT_ONLY),
    "messages.content.video_url": Unsupported("Send frames of the video as images."),
    "messages.content.image_url.content_hash": Neutral("Images are cached by their content."),
    "messages.content.image_url.max_dynamic_patch": Unsupported("Use image_url.detail."),
    "messages.content.image_url.min_dynamic_patch": Unsupported("Use image_url.detail."),
    "messages.content.image_url.max_long_side_pixel": Unsupported("Resize the image in your client."),
}

CHAT = Rules(
    ENGINE_FIELDS,
    OWN_TEMPLATE,
    MESSAGES,
    {
        "add_special_tokens": Unsupported("The chat template adds the special tokens.", (False,)),
        "audio": Unsupported(TEXT_ONLY),
        "best_of": Unsupported("Use n and select a choice in your client.", (1,)),
        "documents": Unsupported("Add the documents to the messages."),
        "echo": Unsupported("Omit it.", (False,)),
        "function_call": Unsupported(_NO_FUNCTIONS, ("none", "auto")),
        "functions": Unsupported(_NO_FUNCTIONS),
        "image_embeds": Unsupported("Send images as image_url parts."),
        "input_ids": Unsupported("Send token IDs to /v1/completions."),
        "modalities": Unsupported(TEXT_ONLY, (["text"],)),
        "moderation": Unsupported("Moderate content in your client."),
        "prediction": Neutral("A predicted output only affects the speed."),
        "reasoning": NO_REASONING,
        "prompt_cache_options": Neutral("Prompt caching is automatic."),
        "prompt_embeds": Unsupported("Send text and images in messages."),
        "task": Unsupported("Describe the task in a message."),
        "verbosity": Neutral("Ask for a shorter or longer response in the prompt."),
        "web_search_options": Unsupported("Add search results to the prompt."),
    },
)
