"""vLLM's fields that control what a response contains. They do not change which tokens are sampled."""

from __future__ import annotations

from pydantic import BaseModel, Field

__all__ = ["TextFields", "TokenFields"]


class TextFields(BaseModel):
    """Fields that control the text of the output."""

    include_stop_str_in_output: bool | None = Field(
        None,
        description="vLLM extension. Whether the text includes the stop string that ended it, or the text "
        "of the stop token. Special tokens are included only if skip_special_tokens is false.",
        examples=[True],
    )
    skip_special_tokens: bool | None = Field(
        None,
        description="vLLM extension. Whether special tokens are omitted from the text. Defaults to true.",
        examples=[False],
    )
    spaces_between_special_tokens: bool | None = Field(
        None,
        description="vLLM extension. Accepted for compatibility. The supported tokenizers never add spaces "
        "between special tokens.",
    )


class TokenFields(BaseModel):
    """Fields that add tokens to the response. Only chat and text completions have a place for them."""

    return_token_ids: bool | None = Field(
        None,
        description="vLLM extension. Whether to return the token IDs of the prompt (prompt_token_ids) and of "
        "each choice (token_ids).",
        examples=[True],
    )
    return_tokens_as_token_ids: bool | None = Field(
        None,
        description="vLLM extension. Whether log probabilities refer to tokens by ID, for example "
        "token_id:42. In this case, they include all output tokens, even those without text.",
        examples=[True],
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="vLLM extension. Number of most likely tokens (0 to 20) to return at each position of "
        "the prompt, in addition to the prompt token. The prompt is processed without the prefix cache. Not "
        "allowed if stream is true.",
        examples=[1],
    )
