"""Rules for fields that belong to another API than the route to which they were sent.

A client that sends Anthropic's ``system`` to OpenAI's route expects it to have an effect. The error names the
field of the route's own API.
"""

from __future__ import annotations

from llava_server.api.compatibility.engines import NO_REASONING, SAMPLER_FIELDS
from llava_server.api.compatibility.rule import Neutral, Rule, Rules, Unsupported

__all__ = ["IN_CHAT", "IN_COMPLETIONS", "IN_MESSAGES", "IN_RESPONSES", "OLLAMA_CHAT", "OLLAMA_GENERATE"]

_CHAT = "Use /v1/chat/completions."
_IN_MESSAGE = "Send images as parts of a message."
_NO_STORED = "Send the whole conversation, or use /v1/responses."
_OWN_TEMPLATE = "The server always uses the model's own chat template."

# fields of Ollama's API, except for those that need another remedy on each route
_OLLAMA: dict[str, Rule] = {
    "images": Unsupported(_IN_MESSAGE),
    "keep_alive": Neutral("Models are never unloaded automatically."),
    "options": Unsupported("Send each option as a field of the request."),
    "template": Unsupported(_OWN_TEMPLATE),
    "think": NO_REASONING,
}


def _use(**names: str) -> dict[str, Rule]:
    """Return rules for fields that have another name in the API of the route."""
    return {name: Unsupported(f"Use {own}.") for name, own in names.items()}


IN_CHAT: dict[str, Rule] = {
    **_OLLAMA,
    **_use(
        format="response_format",
        input="messages",
        instructions="a message with the role system",
        max_output_tokens="max_tokens",
        output_config="response_format",
        output_format="response_format",
        prompt="messages, or send the prompt to /v1/completions",
        stop_sequences="stop",
        system="a message with the role system",
        text="response_format",
    ),
    "previous_response_id": Unsupported(_NO_STORED),
}

IN_COMPLETIONS: dict[str, Rule] = {
    **_OLLAMA,
    **_use(
        format="guided_json",
        input="prompt",
        max_output_tokens="max_tokens",
        stop_sequences="stop",
    ),
    **dict.fromkeys(("instructions", "messages", "system", "tool_choice", "tools"), Unsupported(_CHAT)),
}

IN_RESPONSES: dict[str, Rule] = {
    **_OLLAMA,
    **_use(
        format="text.format",
        functions="tools",
        output_config="text.format",
        output_format="text.format",
        stop_sequences="stop",
        system="instructions",
    ),
}

IN_MESSAGES: dict[str, Rule] = {
    **_OLLAMA,
    **_use(
        format="output_config.format",
        functions="tools",
        input="messages",
        instructions="system",
        max_output_tokens="max_tokens",
        prompt="messages",
        text="output_config.format",
    ),
    "previous_response_id": Unsupported(_NO_STORED),
}

_OPTION_NAMES: dict[str, Rule] = {
    **_use(
        max_completion_tokens="options.num_predict",
        max_output_tokens="options.num_predict",
        max_tokens="options.num_predict",
        num_predict="options.num_predict",
        response_format="format",
        stop_sequences="options.stop",
    ),
    **{
        name: Unsupported(f"Use options.{name}.")
        for name in (
            "frequency_penalty",
            "min_p",
            "mirostat",
            "num_ctx",
            "presence_penalty",
            "repeat_penalty",
            "seed",
            "stop",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
        )
    },
    **{
        name: Unsupported(_CHAT)
        for name in (
            "allowed_token_ids",
            "bad_words",
            "guided_choice",
            "guided_grammar",
            "guided_json",
            "guided_regex",
            "logit_bias",
            "min_tokens",
            "structured_outputs",
            "truncate_prompt_tokens",
        )
    },
    "n": Unsupported(_CHAT, (1,)),
    "tool_choice": Unsupported(_CHAT, ("auto",)),
    **{
        f"options.{name}": rule
        for name, rule in SAMPLER_FIELDS.items()
        if name not in ("mirostat", "mirostat_eta", "mirostat_tau", "repeat_last_n")
    },
    "options.grammar": Unsupported("Use format."),
}

OLLAMA_CHAT = Rules(
    _OPTION_NAMES,
    {
        "context": Unsupported("Send the earlier messages in messages."),
        "images": Unsupported("Use the images of a message."),
        "prompt": Unsupported("Use messages."),
        "raw": Unsupported("Use /api/generate.", (False,)),
        "suffix": Unsupported("Use /api/generate."),
        "system": Unsupported("Use a message with the role system."),
        "template": Unsupported(_OWN_TEMPLATE),
    },
)
OLLAMA_GENERATE = Rules(
    _OPTION_NAMES,
    {"messages": Unsupported("Use /api/chat."), "tools": Unsupported("Use /api/chat.")},
)
