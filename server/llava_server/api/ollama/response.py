"""Responses from /api/chat, /api/generate, /api/embed and /api/embeddings.

The lines of a stream have the same type as a complete response.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from llava_server.api.chat.logprobs import TokenLogprob
from llava_server.api.embeddings.response import Float32
from llava_server.response_model import Count, ResponseModel, doc

__all__ = [
    "DoneReason",
    "EmbedResponse",
    "GenerateResponse",
    "LegacyEmbedResponse",
    "OllamaCalledFunction",
    "OllamaChatResponse",
    "OllamaOutputCall",
    "OllamaOutputMessage",
    "timestamp",
]

DoneReason = Literal["stop", "length", "load"]
Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_TIME = "2026-11-28T12:00:00.000000Z"


def timestamp(seconds: float | None = None) -> str:
    """Return the time, in seconds since the Unix epoch, in RFC 3339 format. Defaults to the current time."""
    moment = datetime.now(timezone.utc) if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class _OutputHead(ResponseModel, kw_only=True):
    """Fields shared by responses from /api/chat and /api/generate."""

    model: Annotated[str, doc("Model name from the request.", "tiny-llava:latest")]
    created_at: Annotated[str, doc("Time at which the object was created, in RFC 3339 format.", _TIME)]
    done: Annotated[bool, doc("Whether this is the complete response or the last line of a stream.", True)]
    done_reason: Annotated[
        DoneReason | UnsetType,
        doc(
            'Why generation ended: "stop" if the model finished its output, called a tool, or a stop string '
            'matched, "length" if the output reached num_predict or the context length, or "load" if the '
            "request had no prompt. Sent only if done is true.",
        ),
    ] = UNSET
    logprobs: Annotated[
        list[TokenLogprob] | UnsetType,
        doc(
            "Log probabilities of the tokens in this object. Sent only if requested.",
            [{"token": "red", "logprob": -0.25, "bytes": [114, 101, 100], "top_logprobs": []}],
        ),
    ] = UNSET


class _Measured(_OutputHead, kw_only=True):
    """Durations in nanoseconds and token counts. In a stream, they are sent only in the last line."""

    total_duration: Annotated[
        Nanoseconds | UnsetType,
        doc("Time from the arrival of the request to the end of the output.", 2_500_000),
    ] = UNSET
    load_duration: Annotated[
        Nanoseconds | UnsetType, doc("Always 0, because workers have already loaded the model.", 0)
    ] = UNSET
    prompt_eval_count: Annotated[
        Count | UnsetType, doc("Number of prompt tokens, including image tokens.", 612)
    ] = UNSET
    prompt_eval_duration: Annotated[
        Nanoseconds | UnsetType,
        doc(
            "Time from the arrival of the request to the first output, including the time in the queue.",
            1_000_000,
        ),
    ] = UNSET
    eval_count: Annotated[
        Count | UnsetType, doc("Number of output tokens, including the end-of-sequence token.", 9)
    ] = UNSET
    eval_duration: Annotated[
        Nanoseconds | UnsetType, doc("Time from the first output to the end of the output.", 1_500_000)
    ] = UNSET


class OllamaCalledFunction(ResponseModel):
    """The function name and arguments of a tool call."""

    index: Annotated[Count, doc("Index of the call in the output, starting at 0.", 0)]
    name: Annotated[str, doc("Name of a function from the request.", "get_weather")]
    arguments: Annotated[
        dict[str, Any], doc("Arguments, which conform to the function's schema.", {"city": "Paris"})
    ]


class OllamaOutputCall(ResponseModel):
    """A function call that the client must run."""

    id: Annotated[
        str,
        doc(
            "ID of the call. It can be used as tool_call_id in the message that contains the result.",
            "call_0f3c5d2a91b84e6f7a10c2d4",
        ),
    ]
    function: Annotated[OllamaCalledFunction, doc("Function name and arguments.")]


class OllamaOutputMessage(ResponseModel, kw_only=True):
    """A generated message, or its next part in a stream."""

    role: Literal["assistant"] = "assistant"
    content: Annotated[str, doc("Generated text. Empty if there is no new text.", "A red circle.")]
    tool_calls: Annotated[
        Annotated[list[OllamaOutputCall], Meta(min_length=1)] | UnsetType,
        doc(
            "Function calls, in output order. A call that was truncated by num_predict is omitted.",
            [
                {
                    "id": "call_0f3c5d2a91b84e6f7a10c2d4",
                    "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}},
                }
            ],
        ),
    ] = UNSET


class OllamaChatResponse(_Measured, kw_only=True):
    """A generated message, or one line of its stream."""

    message: Annotated[
        OllamaOutputMessage,
        doc("The message or, in a stream, its next part.", {"role": "assistant", "content": "A red circle."}),
    ]


class GenerateResponse(_Measured, kw_only=True):
    """A response to a prompt, or one line of its stream."""

    response: Annotated[str, doc("Generated text or, in a stream, its next part.", "A red circle.")]


class EmbedResponse(ResponseModel):
    """The embeddings of all inputs, in input order."""

    model: Annotated[str, doc("Model name from the request.", "tiny-llava:latest")]
    embeddings: Annotated[list[list[Float32]], doc("One unit-length vector per input.", [[0.6, -0.8]])]
    total_duration: Annotated[
        Nanoseconds, doc("Time since the arrival of the request, in nanoseconds.", 2_500_000)
    ]
    load_duration: Annotated[Nanoseconds, doc("Always 0, because workers have already loaded the model.", 0)]
    prompt_eval_count: Annotated[Count, doc("Total number of tokens in all inputs.", 7)]


class LegacyEmbedResponse(ResponseModel):
    """The embedding of one text."""

    embedding: Annotated[
        list[Float32], doc("Unit-length vector. Empty if the request had no prompt.", [0.6, -0.8])
    ]
