"""A message in the words of Anthropic's Messages API, and how long its prompt would be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llava_server.api.openapi.schema import Shape, Tokens

__all__ = ["Block", "Message", "MessageCost", "MessageTokens", "StartedMessage", "StopReason"]

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class SaidBlock(Shape):
    """Something that the model said."""

    type: Literal["text"] = Field(description="text")
    text: str = Field(description="What it said.", examples=["A red circle."])


class CallBlock(Shape):
    """A tool that the caller is to run."""

    type: Literal["tool_use"] = Field(description="tool_use")
    id: str = Field(
        description="Names the call in the tool_result block.", examples=["toolu_0f3c5d2a91b84e6f7a10c2d4"]
    )
    name: str = Field(description="One of the request's tools.", examples=["get_weather"])
    input: dict[str, Any] = Field(
        description="The arguments, which keep to the tool's schema; empty in content_block_start, and where "
        "max_tokens cut them.",
        examples=[{"city": "Paris"}],
    )


Block = Annotated[SaidBlock | CallBlock, Field(discriminator="type")]


class MessageCost(Shape):
    """Tokens; the prompt's are the sum of input_tokens and cache_read_input_tokens."""

    input_tokens: Tokens = Field(description="Tokens of the prompt that had to be computed.", examples=[36])
    cache_creation_input_tokens: Literal[0] = Field(description="Always 0: caching costs nothing here.")
    cache_read_input_tokens: Tokens = Field(
        description="Tokens of the prompt that a worker had computed before.", examples=[576]
    )
    output_tokens: Tokens = Field(description="Tokens of the answer, its end mark included.", examples=[9])


class MessageHead(Shape):
    """What a message is from its first event on."""

    id: str = Field(description="Of the message.", examples=["msg_3f1c09a2b44de8715a7c61f02b9d10ee"])
    type: Literal["message"] = Field(description="message")
    role: Literal["assistant"] = Field(description="assistant")
    model: str = Field(description="The model that answered.", examples=["tiny-llava"])
    usage: MessageCost = Field(description="The tokens that it took, of a stream so far.")


class Message(MessageHead):
    """The answer to a conversation."""

    content: list[Block] = Field(
        description="What the model said and the tools that it asks for, in their order.",
        examples=[[{"type": "text", "text": "A red circle."}]],
    )
    stop_reason: StopReason = Field(
        description="end_turn: the model ended it; stop_sequence: one of the request's did; max_tokens: they "
        "or the context were used up; tool_use: a tool is to be run."
    )
    stop_sequence: str | None = Field(description="The one that ended it, else null.", examples=["###"])


class StartedMessage(MessageHead):
    """A message that begins."""

    content: list[Block] = Field(max_length=0, description="Nothing yet.", examples=[[]])
    stop_reason: None = Field(description="Null: it has not ended.")
    stop_sequence: None = Field(description="Null: it has not ended.")


class MessageTokens(Shape):
    """How long the prompt would be."""

    input_tokens: Tokens = Field(
        description="Its tokens, with the places that pictures take.", examples=[612]
    )
