"""The requests of /tokenize and /detokenize, named as in vLLM."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.messages import ChatMessage
from llava_server.api.fields.sampling import TokenId
from llava_server.api.fields.tools import ToolFields
from llava_server.api.fields.unsupported import Unsupported

__all__ = ["DetokenizeRequest", "TokenizeRequest"]

_MAX_TOKENS = 1 << 20
_MAX_MESSAGES = 1024

_MODEL: Any = Field(
    min_length=1, max_length=256, description="A model of GET /v1/models.", examples=["tiny-llava"]
)


class TokenizeRequest(RequestModel, ToolFields):
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
    add_special_tokens: Annotated[Any, Unsupported("leave the first token away", (True,))] = None
    return_token_strs: Annotated[Any, Unsupported("send single tokens to /detokenize", (False,))] = None
    chat_template: Annotated[Any, Unsupported("templates are part of the served model")] = None
    chat_template_kwargs: Annotated[Any, Unsupported("templates are part of the served model", ({},))] = None

    @model_validator(mode="after")
    def _check_prompt_or_messages(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise invalid_value("prompt", "give either prompt or messages")
        return self


class DetokenizeRequest(RequestModel):
    """Tokens whose text is wanted."""

    model: str = _MODEL
    tokens: Annotated[list[TokenId], Field(min_length=1, max_length=_MAX_TOKENS)] = Field(
        description="Token ids, at least one; special tokens and ids that the model lacks have no text.",
        examples=[[1, 42]],
    )
