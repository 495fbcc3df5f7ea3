"""The requests of /tokenize and /detokenize, named as in vLLM."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llava_server.api.fields.messages import ChatMessage, Strict
from llava_server.api.fields.sampling import TokenId, disagreement
from llava_server.api.fields.tools import ToolFields
from llava_server.api.fields.unsupported import Refusal, only_neutral, refused

__all__ = ["TOKENIZE_REFUSED", "DetokenizeRequest", "TokenizeRequest"]

_MAX_TOKENS = 1 << 20
_MAX_MESSAGES = 1024

TOKENIZE_REFUSED: dict[str, Refusal] = {
    "add_special_tokens": Refusal((True,), "leave the first token away"),
    "return_token_strs": Refusal((False,), "send single tokens to /detokenize"),
    "chat_template": Refusal((), "templates are part of the served model"),
    "chat_template_kwargs": Refusal(({},), "templates are part of the served model"),
}
_MODEL: Any = Field(
    min_length=1, max_length=256, description="A model of GET /v1/models.", examples=["tiny-llava"]
)


class TokenizeRequest(Strict, ToolFields):
    """A text, or a conversation as the model would see it."""

    model: str = _MODEL
    prompt: str | None = Field(
        None, description="A text; the begin mark is put before it.", examples=["What is this?"]
    )
    messages: list[ChatMessage] | None = Field(
        None,
        min_length=1,
        max_length=_MAX_MESSAGES,
        description="A conversation, in place of a text: what a chat would make of it, pictures included.",
        examples=[[{"role": "user", "content": "What can you do?"}]],
    )
    continue_final_message: bool | None = Field(None, description="As in a chat; only with messages.")
    add_generation_prompt: bool | None = Field(None, description="As in a chat; only with messages.")
    add_special_tokens: Any = refused("add_special_tokens", TOKENIZE_REFUSED)
    return_token_strs: Any = refused("return_token_strs", TOKENIZE_REFUSED)
    chat_template: Any = refused("chat_template", TOKENIZE_REFUSED)
    chat_template_kwargs: Any = refused("chat_template_kwargs", TOKENIZE_REFUSED)

    @field_validator(*TOKENIZE_REFUSED)
    @classmethod
    def _only_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        return only_neutral(value, info, TOKENIZE_REFUSED)

    @model_validator(mode="after")
    def _has_one_of_them(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise disagreement("prompt", "give either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """Tokens whose text is wanted."""

    model: str = _MODEL
    tokens: Annotated[list[TokenId], Field(min_length=1, max_length=_MAX_TOKENS)] = Field(
        description="Token ids, at least one; special tokens and ids that the model lacks have no text.",
        examples=[[1, 42]],
    )
