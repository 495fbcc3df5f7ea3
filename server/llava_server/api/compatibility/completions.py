"""Rules for /v1/completions, /v1/embeddings, /tokenize, /detokenize and /v1/batches."""

from __future__ import annotations

from llava_server.api.compatibility.chat import MESSAGES
from llava_server.api.compatibility.engines import ENGINE_FIELDS, NO_REASONING, OWN_TEMPLATE, PREPROCESSING
from llava_server.api.compatibility.rule import Neutral, Rule, Rules, Unsupported

__all__ = ["BATCH", "COMPLETION", "DETOKENIZATION", "EMBEDDING", "TOKENIZATION"]

_IN_INPUT = "Send texts or images in 'input'."
_NO_MESSAGES = Neutral("It has no effect without `messages`.")

COMPLETION = Rules(
    ENGINE_FIELDS,
    {
        "add_special_tokens": Unsupported("Send the prompt as token IDs, including special tokens.", (True,)),
        "best_of": Unsupported("Use n and select a choice in your client.", (1,)),
        "continue_final_message": Neutral("A prompt is always continued."),
        "max_completion_tokens": Unsupported("Use max_tokens."),
        "prompt.multimodal_data": Unsupported("Send images to /v1/chat/completions."),
        "prompt.prompt_string": Unsupported("Send the prompt as a string."),
        "prompt_embeds": Unsupported("Send the prompt as text or token IDs."),
        "suffix": Unsupported("The model can only append text to a prompt."),
    },
)

_SHARED: dict[str, Rule] = {
    name: rule
    for name, rule in {**ENGINE_FIELDS, **OWN_TEMPLATE}.items()
    if name in ("request_id", "rid", "lora_path", "chat_template", "truncation_side")
    or name.startswith("chat_template_kwargs")
}

EMBEDDING = Rules(
    PREPROCESSING,
    _SHARED,
    {
        "add_generation_prompt": _NO_MESSAGES,
        "add_special_tokens": Unsupported("Send the text as token IDs, including special tokens.", (True,)),
        "content": Unsupported(_IN_INPUT),
        "continue_final_message": _NO_MESSAGES,
        "dimensions": Unsupported("Embeddings have a fixed size and cannot be shortened."),
        "embd_normalize": Unsupported("Embeddings have length 1.", (2,)),
        "embed_dtype": Unsupported("Convert the embeddings in your client.", ("float32",)),
        "embed_override_token_id": Unsupported(_IN_INPUT),
        "embed_overrides": Unsupported(_IN_INPUT),
        "endianness": Unsupported("base64 embeddings are little-endian.", ("little", "native")),
        "input.image": Unsupported("Send the image as an image_url part."),
        "input.text": Unsupported("Send the text as a string."),
        "input.video": Unsupported("Send frames of the video as image_url parts."),
        "input_type": Neutral("The model does not distinguish queries from documents."),
        "messages": Unsupported(_IN_INPUT),
        "padding": Neutral("Padding does not change an embedding."),
        "priority": Unsupported("Omit it.", (0,)),
        "use_activation": Unsupported("Embeddings have length 1.", (True,)),
    },
)

TOKENIZATION = Rules(
    PREPROCESSING,
    OWN_TEMPLATE,
    MESSAGES,
    {
        "add_special": Unsupported("Remove the first token in your client.", (True,)),
        "add_special_tokens": Unsupported("Remove the first token in your client.", (True,)),
        "content": Unsupported("Use prompt."),
        "parse_special": Unsupported("Special tokens in the text are treated as text.", (False,)),
        "reasoning_effort": NO_REASONING,
        "return_token_strs": Unsupported("Send tokens to /detokenize one at a time.", (False,)),
        "with_pieces": Unsupported("Send tokens to /detokenize one at a time.", (False,)),
    },
)

DETOKENIZATION = Rules(
    {"skip_special_tokens": Unsupported("Special tokens are always skipped.", (True,))},
)

BATCH = Rules({"output_expires_after": Unsupported("Files expire a week after they are created.")})
