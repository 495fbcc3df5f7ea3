"""Response types. They have the same structure as in OpenAI's API. Unknown fields are ignored."""

from __future__ import annotations

import array
import base64
import sys
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Answer",
    "ChatChunk",
    "ChatCompletion",
    "Choice",
    "Deleted",
    "EmbeddingList",
    "Embeddings",
    "FileStored",
    "Model",
    "ModelList",
    "ResponseModel",
    "Text",
    "TokenLogprob",
    "TokenScore",
    "Tokens",
    "ToolCall",
    "Usage",
]


class ResponseModel(BaseModel):
    """The base class of response types. Instances are frozen, and unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _PromptDetails(ResponseModel):
    cached_tokens: int | None = None


class Usage(ResponseModel):
    """Token counts for the prompt (including images) and the completion."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """The number of prompt tokens that were found in the worker's cache."""
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0


class TokenScore(ResponseModel):
    """A token and its log probability.

    ``bytes`` is exact even if the token is only part of a character. It is None for special tokens, which
    occur only in ``top_logprobs``.
    """

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TokenScore):
    """A sampled token. The tokens of a choice concatenate to its text.

    ``top_logprobs`` contains the most likely tokens at the same position, if requested.
    """

    top_logprobs: list[TokenScore] = Field(default_factory=list)


class ToolCall(ResponseModel):
    """A function call requested by the model. ``arguments`` is a JSON string."""

    id: str = ""
    name: str = ""
    arguments: str = ""


class Choice(ResponseModel):
    """One of the ``n`` choices.

    ``logprobs`` is None unless requested. ``tool_calls`` is empty unless the request contains ``tools``.
    """

    text: str
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class Answer(ResponseModel):
    """A complete response. ``str(answer)`` is its text.

    ``finish_reason`` is "stop" if the response is complete, "length" if ``max_tokens`` or the context limit
    was reached, or "tool_calls" if the model requested tool calls. ``choices`` contains all ``n`` choices.
    ``text`` and ``finish_reason`` are those of the first choice. ``id`` identifies the completion.
    ``request_id`` identifies the HTTP request in the server's logs.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None
    choices: tuple[Choice, ...] = ()
    id: str = ""
    model: str = ""
    request_id: str | None = None

    def __str__(self) -> str:
        return self.text


class Model(ResponseModel):
    """A model that the server offers. ``details`` contains all other fields that the server sent."""

    id: str
    owned_by: str = ""
    details: dict[str, Any] = Field(default_factory=dict)

    def __str__(self) -> str:
        return self.id


class ModelList(BaseModel):
    """The response body of ``GET /v1/models``."""

    data: list[dict[str, Any]]

    def models(self) -> list[Model]:
        """Return the models in the server's order.

        Fields that have no attribute of their own are stored in ``details``.
        """
        known = {"id", "owned_by", "object", "created"}
        return [
            Model(
                id=str(entry.get("id", "")),
                owned_by=str(entry.get("owned_by", "")),
                details={name: value for name, value in entry.items() if name not in known},
            )
            for entry in self.data
        ]


class _Function(ResponseModel):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(ResponseModel):
    """A tool call, or part of one in a stream. The ID and name may be sent only with the first part."""

    index: int = 0
    id: str | None = None
    function: _Function = Field(default_factory=_Function)

    def appended_to(self, call: ToolCall) -> ToolCall:
        name, arguments = self.function.name, self.function.arguments
        return ToolCall(
            id=self.id or call.id, name=name or call.name, arguments=call.arguments + (arguments or "")
        )


class _Message(ResponseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(ResponseModel):
    content: list[TokenLogprob] | None = None


class _Choice(ResponseModel):
    index: int = 0
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None

    def choice(self) -> Choice:
        logprobs = self.logprobs.content if self.logprobs else None
        return Choice(
            text=self.message.content or "",
            finish_reason=self.finish_reason,
            logprobs=None if logprobs is None else tuple(logprobs),
            tool_calls=tuple(call.appended_to(ToolCall()) for call in self.message.tool_calls or ()),
        )


class ChatCompletion(ResponseModel):
    """The response body of a non-streaming chat request."""

    id: str = ""
    model: str = ""
    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None


class _ChunkChoice(ResponseModel):
    index: int = 0
    delta: _Message = Field(default_factory=_Message)
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class ChatChunk(ResponseModel):
    """One event of a streamed chat completion. The last event may contain only the usage.

    If ``error`` is set, generation failed, and no more events follow.
    """

    id: str = ""
    model: str = ""
    choices: list[_ChunkChoice] = Field(default_factory=list)
    usage: Usage | None = None
    error: Any = None


class Embeddings(ResponseModel):
    """Unit-length embeddings, one per input, in input order: ``[inputs][hidden size]``.

    Text and image embeddings are not comparable.
    """

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage | None = None
    model: str = ""
    request_id: str | None = None


class _Embedding(ResponseModel):
    index: int = 0
    embedding: str | tuple[float, ...]

    def vector(self) -> tuple[float, ...]:
        if not isinstance(self.embedding, str):
            return self.embedding
        numbers = array.array("f", base64.b64decode(self.embedding))  # little-endian fp32
        if sys.byteorder == "big":
            numbers.byteswap()
        return tuple(numbers)


class EmbeddingList(ResponseModel):
    """The response body of ``POST /v1/embeddings``."""

    data: list[_Embedding]
    model: str = ""
    usage: Usage | None = None


class Tokens(ResponseModel):
    """The response body of ``POST /tokenize``."""

    tokens: list[int]


class Text(ResponseModel):
    """The response body of ``POST /detokenize``."""

    prompt: str


class FileStored(ResponseModel):
    """The response body of ``POST /v1/files``."""

    id: str


class Deleted(ResponseModel):
    """The response body of a DELETE request."""

    id: str
