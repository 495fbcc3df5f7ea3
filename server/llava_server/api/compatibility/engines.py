"""Rules for fields of vLLM, SGLang and llama.cpp that apply to every route that generates text."""

from __future__ import annotations

from llava_server.api.compatibility.rule import Neutral, Rule, Unsupported

__all__ = [
    "CHAT_ONLY",
    "ENGINE_FIELDS",
    "NO_REASONING",
    "OWN_TEMPLATE",
    "PREPROCESSING",
    "RESPONSE_PARAMETERS",
]

NO_REASONING = Neutral("The model has no reasoning mode.")
_AUTOMATIC_CACHE = Neutral("Prompt caching is automatic.")
_ROUTING = Neutral("The server selects the worker.")
_NOT_RETURNED = "The response contains only tokens and log probabilities."
_ONE_MODEL = "LoRA adapters are not available. Serve the merged weights as a model."
_TEMPLATE_OF_MODEL = "The server always uses the model's own chat template."
_NOT_DISAGGREGATED = "Prefill and decoding run on the same worker."


def _only_with(name: str) -> Neutral:
    return Neutral(f"It has no effect without `{name}`.")


OWN_TEMPLATE: dict[str, Rule] = {
    "chat_template": Unsupported(_TEMPLATE_OF_MODEL),
    "chat_template_kwargs.enable_thinking": NO_REASONING,
    "chat_template_kwargs.thinking": NO_REASONING,
    "chat_template_kwargs.reasoning_effort": NO_REASONING,
    "chat_template_kwargs.preserve_thinking": NO_REASONING,
    "chat_template_kwargs.clear_thinking": NO_REASONING,
    "chat_template_kwargs.*": Unsupported("The model's chat template does not use it."),
}

PREPROCESSING: dict[str, Rule] = {
    "media_io_kwargs": Unsupported("Images are always preprocessed as the model requires."),
    "mm_processor_kwargs": Unsupported("Images are always preprocessed as the model requires."),
    "images_config": Unsupported("Use image_url.detail."),
    "video_config": Unsupported("Send frames of the video as images."),
    "max_dynamic_patch": Unsupported("Use image_url.detail."),
    "min_dynamic_patch": Unsupported("Use image_url.detail."),
    "use_audio_in_video": Unsupported("The model accepts text and images.", (False,)),
    "mm_payload": Unsupported(_NOT_RETURNED, ("none",)),
    "return_mm_kwargs": Unsupported(_NOT_RETURNED, (False,)),
}

_REASONING: dict[str, Rule] = dict.fromkeys(
    (
        "include_reasoning",
        "reasoning_budget_end_tag",
        "reasoning_budget_end_tags",
        "reasoning_budget_message",
        "reasoning_budget_start_tag",
        "reasoning_budget_tokens",
        "reasoning_control",
        "reasoning_effort",
        "reasoning_format",
        "separate_reasoning",
        "stream_reasoning",
        "thinking",
        "thinking_budget_tokens",
        "thinking_token_budget",
    ),
    NO_REASONING,
)

_ROUTED: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "data_parallel_rank",
            "disagg_prefill_dp_rank",
            "id_slot",
            "routed_dp_rank",
            "session_id",
        ),
        _ROUTING,
    ),
    "request_id": Neutral("Send the X-Request-Id header to set the request ID."),
    "rid": Neutral("Send the X-Request-Id header to set the request ID."),
    "ec_transfer_params": Unsupported(_NOT_DISAGGREGATED),
    "kv_transfer_params": Unsupported(_NOT_DISAGGREGATED),
    "session_params": Unsupported("Send the whole conversation with each request."),
}

# Samplers that LLaVA's engine does not have, and the parameters that only these samplers read.
_SAMPLERS: dict[str, Rule] = {
    "adaptive_target": Unsupported("Use temperature, top_p or min_p.", (-1,)),
    "adaptive_decay": _only_with("adaptive_target"),
    "backend_sampling": Neutral("It only determines where the tokens are sampled."),
    "beam_width": Unsupported("Set n to sample several choices.", (0, 1)),
    "custom_logit_processor": Unsupported("Use logit_bias."),
    "custom_params": Unsupported("Use the documented sampling parameters."),
    "dry_multiplier": Unsupported("Use frequency_penalty or repetition_penalty.", (0,)),
    "dry_allowed_length": _only_with("dry_multiplier"),
    "dry_base": _only_with("dry_multiplier"),
    "dry_penalty_last_n": _only_with("dry_multiplier"),
    "dry_sequence_breakers": _only_with("dry_multiplier"),
    "dynatemp_range": Unsupported("Use temperature.", (0,)),
    "dynatemp_exponent": _only_with("dynatemp_range"),
    "early_stopping": _only_with("use_beam_search"),
    "length_penalty": _only_with("use_beam_search"),
    "min_keep": Unsupported("Increase top_p or reduce min_p.", (0,)),
    "mirostat": Unsupported("Use temperature, top_p or min_p.", (0,)),
    "mirostat_eta": _only_with("mirostat"),
    "mirostat_tau": _only_with("mirostat"),
    "repeat_last_n": Unsupported("Penalties apply to the whole prompt and output.", (-1,)),
    "repetition_detection": Unsupported("Use frequency_penalty or repetition_penalty."),
    "samplers": Unsupported("The order of the sampling steps is fixed."),
    "top_n_sigma": Unsupported("Use min_p.", (-1, 0)),
    "use_beam_search": Unsupported("Set n to sample several choices.", (False,)),
    "vllm_xargs": Unsupported("Use the documented sampling parameters."),
    "watermark": Unsupported("The output cannot be watermarked.", (False,)),
    "watermarking": Unsupported("The output cannot be watermarked.", (False,)),
    "xtc_probability": Unsupported("Use temperature, top_p or min_p.", (0,)),
    "xtc_threshold": _only_with("xtc_probability"),
}

# Other servers' names for parameters that this server has under OpenAI's or vLLM's name.
_OTHER_NAMES: dict[str, Rule] = {
    "extra_key": Unsupported("Use cache_salt."),
    "max_new_tokens": Unsupported("Use max_tokens."),
    "min_new_tokens": Unsupported("Use min_tokens.", (0,)),
    "n_cmpl": Unsupported("Use n.", (1,)),
    "n_probs": Unsupported("Use logprobs.", (0,)),
    "no_stop_trim": Unsupported("Use include_stop_str_in_output.", (False,)),
    "return_tokens": Unsupported("Use return_token_ids.", (False,)),
    "sampling_seed": Unsupported("Use seed."),
}

_GENERATION: dict[str, Rule] = {
    "cache_prompt": _AUTOMATIC_CACHE,
    "message_delimiters": _AUTOMATIC_CACHE,
    "n_cache_reuse": _AUTOMATIC_CACHE,
    "n_discard": Neutral("The context is never shifted. An over-long prompt is an error."),
    "n_keep": Neutral("The context is never shifted. An over-long prompt is an error."),
    "n_indent": Unsupported("Use guided_regex.", (0,)),
    "guided_whitespace_pattern": Unsupported("Use guided_regex."),
    "lora": Unsupported(_ONE_MODEL),
    "lora_path": Unsupported(_ONE_MODEL),
    "sse_ping_interval": Neutral("It only affects comments in the stream."),
    "stop_regex": Unsupported("Use stop with fixed strings."),
    "stream_interval": Neutral("It only affects the size of the chunks."),
    "t_max_predict_ms": Unsupported("Close the connection to cancel the request.", (0, -1)),
    "truncation_side": Unsupported("The start of the prompt is truncated.", ("left",)),
    # internal fields of llama.cpp's chat parser
    "chat_format": Unsupported("Tool calls are always parsed."),
    "chat_parser": Unsupported("Tool calls are always parsed."),
    "generation_prompt": Unsupported("Use continue_final_message."),
    "grammar_lazy": Unsupported("Use tools.", (False,)),
    "grammar_triggers": Unsupported("Use tools."),
    "grammar_type": Unsupported("Use tools."),
    "parse_tool_calls": Unsupported("Tool calls are always parsed.", (True,)),
    "preserved_tokens": Unsupported("Use skip_special_tokens."),
}

RESPONSE_PARAMETERS: dict[str, Rule] = {
    "custom_labels": Neutral("It only labels metrics."),
    "logprob_token_ids": Unsupported("Use top_logprobs."),
    "post_sampling_probs": Unsupported("Log probabilities do not depend on sampling parameters.", (False,)),
    "response_fields": Unsupported("Select the fields in your client."),
    "return_progress": Neutral("Progress is not reported."),
    "return_flat_raw_top_logprobs_b64": _only_with("return_flat_raw_output_top_logprobs"),
    "routed_experts_prompt_start": _only_with("return_routed_experts"),
    "routed_experts_start_len": _only_with("return_routed_experts"),
    "sampling_logprobs_mode": Unsupported("Log probabilities do not depend on sampling parameters."),
    "timings_per_token": Neutral("The server's metrics contain timings."),
    "_debug_render_only": Unsupported("Send the messages to /tokenize.", (False,)),
    "verbose": Neutral("It only requests debug information."),
    "return_cached_tokens_details": Neutral("`usage` contains the number of cached tokens."),
    "return_spec_tokens_details": Neutral("The server's metrics contain the accepted draft tokens."),
    **dict.fromkeys(
        (
            "return_flat_raw_output_top_logprobs",
            "return_hidden_states",
            "return_input_ids_in_sglext",
            "return_meta_info",
            "return_output_ids_in_sglext",
            "return_prompt_text",
            "return_prompt_token_ids",
            "return_routed_experts",
            "return_sampling_mask",
            "return_token_offsets",
        ),
        Unsupported(_NOT_RETURNED, (False,)),
    ),
}

ENGINE_FIELDS: dict[str, Rule] = {
    **PREPROCESSING,
    **_REASONING,
    **_ROUTED,
    **_SAMPLERS,
    **_OTHER_NAMES,
    **_GENERATION,
    **RESPONSE_PARAMETERS,
}

_CHAT = "Use it with /v1/chat/completions."

# Fields that only /v1/chat/completions has, because the responses of /v1/responses and /v1/messages have no
# place for their results, or because the conversation determines them.
CHAT_ONLY: dict[str, Rule] = {
    "add_generation_prompt": Unsupported(_CHAT, (True,)),
    "continue_final_message": Unsupported(_CHAT, (False,)),
    "echo": Unsupported("Omit it.", (False,)),
    "n": Unsupported(_CHAT, (1,)),
    "prompt_logprobs": Unsupported(_CHAT),
    "return_token_ids": Unsupported(_CHAT, (False,)),
    "return_tokens_as_token_ids": Unsupported(_CHAT, (False,)),
}
