"""vLLM's fields that control how a prompt is truncated and cached."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from llava_server.api.fields.base import invalid_value

__all__ = ["PromptFields"]

_MAX_TOKENS = 2**31 - 1


def _check_limit(limit: int) -> int:
    if limit == 0:
        raise invalid_value(
            "truncate_prompt_tokens",
            "truncate_prompt_tokens is 0, which would drop the whole prompt. Set it to 1 or more, or to -1 "
            "for the context length.",
        )
    return limit


class PromptFields(BaseModel):
    """Fields of chat, text completion and embedding requests."""

    truncate_prompt_tokens: (
        Annotated[
            int,
            Field(ge=-1, le=_MAX_TOKENS, json_schema_extra={"not": {"const": 0}}),
            AfterValidator(_check_limit),
        ]
        | None
    ) = Field(
        None,
        description="vLLM extension. Maximum number of prompt tokens. Tokens at the start of a longer "
        "prompt are dropped. A beginning-of-sequence token that the server adds is kept. -1 keeps as many "
        "tokens as fit in the context together with max_tokens. Images are dropped as a whole. If the limit "
        "would cut off part of an image, the request is rejected.",
        examples=[-1],
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="vLLM extension. Cached prompts and images are reused only for requests with the same "
        "cache_salt, in addition to the restrictions of cache_scope.",
        examples=["session-7"],
    )
