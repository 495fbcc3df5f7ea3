"""Requests to /v1/embeddings, in OpenAI's format, extended with image inputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llava_server.api.chat.request import Hint
from llava_server.api.compatibility.completions import EMBEDDING
from llava_server.api.fields.base import RequestModel
from llava_server.api.fields.messages import ImagePart
from llava_server.api.fields.prompt import PromptFields
from llava_server.api.fields.sampling import TokenId
from llava_server.api.json_limits import MAX_TOKEN_IDS, TOKEN_LIMITS

__all__ = ["EmbeddingInput", "EmbeddingRequest"]

_MAX_INPUTS = 2048


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return "<image>"
    first = value[0] if value else None
    if isinstance(first, list):
        return "<lists>"
    return "<tokens>" if isinstance(first, int) and not isinstance(first, bool) else "<list>"


def _item_kind(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<image>"


Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]
Item = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")], Discriminator(_item_kind)
]
Input = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image>")]
    | Annotated[list[Item], Field(min_length=1, max_length=_MAX_INPUTS, fail_fast=True), Tag("<list>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=_MAX_INPUTS, fail_fast=True), Tag("<lists>")],
    Discriminator(_kind),
]
EmbeddingInput = str | list[int] | ImagePart


class EmbeddingRequest(RequestModel, PromptFields):
    """A request to embed texts and images."""

    rules = EMBEDDING
    json_limits = TOKEN_LIMITS

    model: str = Field(
        min_length=1,
        max_length=256,
        description="Model name, as listed by GET /v1/models.",
        examples=["tiny-llava"],
    )
    input: Input = Field(
        description=f"A string, a list of token IDs, or a list of up to {_MAX_INPUTS} strings or lists of "
        "token IDs. A beginning-of-sequence token is prepended to strings, but not to token IDs. Extension: "
        "an input can also be an image, in the same format as an image_url part of a chat message.",
        examples=["a red square"],
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None,
        description='"float" (default) returns a list of numbers. "base64" returns base64-encoded '
        "little-endian 32-bit floats.",
        examples=["float"],
    )
    normalize: bool | None = Field(
        None,
        description="vLLM extension. Whether to normalize embeddings to unit length. Defaults to true.",
        examples=[False],
    )
    user: Hint | None = Field(
        None,
        description="Accepted for compatibility, but neither used nor stored. At most 1024 characters.",
        examples=["user-7"],
    )

    @property
    def fields(self) -> list[str]:
        """The field name of each input, for error messages."""
        is_one = not isinstance(self.input, list) or isinstance(self.input[0], int)
        return ["input"] if is_one else [f"input[{index}]" for index in range(len(self.inputs))]

    @property
    def inputs(self) -> list[EmbeddingInput]:
        """The inputs, always as a list. Each input results in one embedding."""
        if not isinstance(self.input, list):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token_id for token_id in self.input if isinstance(token_id, int)]]
        return [each for each in self.input if not isinstance(each, int)]
