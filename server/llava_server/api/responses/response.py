"""The response of the Responses API, complete or so far, and the items of its output."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from llava_server.api.chat.logprobs import TokenLogprob
from llava_server.api.chat.response import ServiceTier
from llava_server.response_model import AlwaysTrue, Count, ResponseModel, Timestamp, doc

__all__ = [
    "MESSAGE_EXAMPLE",
    "TEXT_EXAMPLE",
    "DeletedResponse",
    "EchoedFormat",
    "EchoedText",
    "EchoedTool",
    "IncompleteDetails",
    "OutputFunctionCall",
    "OutputItem",
    "OutputMessage",
    "OutputText",
    "Response",
    "ResponseError",
    "ResponseUsage",
]

_NUMBER = "3f1c09a2b44de8715a7c61f02b9d10ee"
_ID = f"resp_{_NUMBER}"
TEXT_EXAMPLE = {"type": "output_text", "text": "A red circle.", "annotations": [], "logprobs": []}
MESSAGE_EXAMPLE = {
    "id": f"msg_{_NUMBER}_0",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [TEXT_EXAMPLE],
}
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
ItemStatus = Annotated[
    Literal["in_progress", "completed", "incomplete"],
    doc(
        "in_progress: it grows; incomplete: max_output_tokens or the context were used up in it.",
        "completed",
    ),
]


class OutputText(ResponseModel, kw_only=True):
    """A text that the model wrote."""

    type: Literal["output_text"] = "output_text"
    text: Annotated[str, doc("The text so far.", "A red circle.")]
    annotations: Annotated[list[str], doc("Always empty: nothing is cited.", [], max_length=0)]
    logprobs: Annotated[
        list[TokenLogprob], doc("Of its tokens so far; empty unless include asked for them.", [])
    ]


class OutputMessage(ResponseModel, kw_only=True, tag_field="type", tag="message"):
    """Something that the model said."""

    id: Annotated[str, doc("Of the item.", f"msg_{_NUMBER}_0")]
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: Annotated[
        list[OutputText], doc("Its text; nothing yet where it opens.", [TEXT_EXAMPLE], max_length=1)
    ]


class OutputFunctionCall(ResponseModel, kw_only=True, tag_field="type", tag="function_call"):
    """A function that the caller is to run."""

    id: Annotated[str, doc("Of the item.", f"fc_{_NUMBER}_0")]
    name: Annotated[str, doc("One of the request's functions.", "get_weather")]
    status: ItemStatus
    arguments: Annotated[
        str,
        doc(
            "An object as JSON, which keeps to the function's schema; as far as it has come.",
            '{"city":"Paris"}',
        ),
    ]
    call_id: Annotated[
        str,
        doc(
            "Names the call in the item function_call_output that brings its result.",
            "call_0f3c5d2a91b84e6f7a10c2d4",
        ),
    ]


OutputItem = OutputMessage | OutputFunctionCall


class ResponseError(ResponseModel, kw_only=True):
    """Why a response has failed."""

    code: Literal["server_error"] = "server_error"
    message: Annotated[str, doc("For people.", "the worker of this request has crashed")]


class IncompleteDetails(ResponseModel):
    """Why a response is cut."""

    reason: Annotated[
        Literal["max_output_tokens"], doc("max_output_tokens: they or the context were used up.")
    ] = "max_output_tokens"


class InputTokens(ResponseModel):
    """More about the input's tokens."""

    cached_tokens: Annotated[Count, doc("Those that a worker had computed before.", 576)]
    cache_write_tokens: Annotated[Literal[0], doc("Always 0: caching costs nothing here.")] = 0


class OutputTokens(ResponseModel):
    """More about the output's tokens."""

    reasoning_tokens: Annotated[Literal[0], doc("Always 0: the model does not think before it answers.")] = 0


class ResponseUsage(ResponseModel):
    """The tokens that a response took."""

    input_tokens: Annotated[Count, doc("Tokens of the prompt, a picture's places included.", 612)]
    input_tokens_details: Annotated[InputTokens, doc("What of them cost nothing.")]
    output_tokens: Annotated[Count, doc("Tokens of the output, its end mark included.", 9)]
    output_tokens_details: Annotated[OutputTokens, doc("What they were for.")]
    total_tokens: Annotated[Count, doc("The sum of both.", 621)]


class EchoedTool(ResponseModel, kw_only=True):
    """A function that the model might call, as it was sent."""

    parameters: Annotated[
        dict[str, Any] | None,
        doc("Its arguments as a JSON schema; null where none was sent.", {"type": "object"}),
    ] = None
    strict: Annotated[bool | None, doc("As it was sent; every call keeps to its schema.")] = None
    type: Literal["function"] = "function"
    name: Annotated[str, doc("Its name.", "get_weather")]
    description: Annotated[str | UnsetType, doc("What it does.", "The weather in a city.")] = UNSET


class EchoedFormat(ResponseModel, rename={"schema_": "schema"}):
    """What the text had to be, as it was sent."""

    type: Annotated[Literal["text", "json_object", "json_schema"], doc("Of which kind it is.", "text")] = (
        "text"
    )
    name: Annotated[str | UnsetType, doc("The schema's name.", "scene")] = UNSET
    schema_: Annotated[dict[str, Any] | UnsetType, doc("The JSON schema.", {"type": "object"})] = UNSET
    description: Annotated[str | UnsetType, doc("As it was sent.", "What is in the picture.")] = UNSET
    strict: Annotated[bool | UnsetType, doc("As it was sent.")] = UNSET


class EchoedText(ResponseModel):
    """How the text had to be."""

    format: Annotated[EchoedFormat, doc("Free text, JSON, or JSON of a schema.")]
    verbosity: Annotated[Literal["medium"] | UnsetType, doc("As it was sent.", "medium")] = UNSET


class EchoedReasoning(ResponseModel):
    """How the model thought before it answered: not at all."""

    effort: Annotated[None, doc("Always null.")] = None
    summary: Annotated[None, doc("Always null.")] = None


class ResponseEcho(ResponseModel, kw_only=True):
    """The part of a response that follows from its request; stored with the job (``Job.note``)."""

    model: Annotated[str, doc("The model that answers.", "tiny-llava")]
    error: Annotated[ResponseError | None, doc("Why it has failed; else null.", None)] = None
    incomplete_details: Annotated[IncompleteDetails | None, doc("Why it is cut; else null.", None)] = None
    background: Annotated[bool, doc("Whether it is made also if nobody reads it.")]
    instructions: Annotated[str | None, doc("As they were sent.", "Answer in one word.")]
    max_output_tokens: Annotated[
        Count | None, doc("Tokens of the output at most; null: the rest of the context.", 128)
    ]
    metadata: Annotated[dict[str, str], doc("As they were sent; empty without.", {"run": "7"})]
    parallel_tool_calls: Annotated[bool, doc("Whether it may make several calls.")]
    previous_response_id: Annotated[None, doc("Always null: conversations are not stored.")] = None
    reasoning: Annotated[EchoedReasoning, doc("Empty: the model does not think before it answers.")]
    service_tier: Annotated[ServiceTier, doc("How the request stood in the queue.", "default")]
    store: Annotated[bool, doc("Whether it can be read later.")]
    temperature: Annotated[Temperature, doc("What it is drawn with.", 1)]
    text: Annotated[EchoedText, doc("How the text has to be.")]
    tool_choice: Annotated[
        Literal["auto", "none", "required"] | dict[str, Any],
        doc("As it was sent: a word, or one function or some as an object.", "auto"),
    ]
    tools: Annotated[list[EchoedTool], doc("Functions that the model may call.", [], max_length=128)]
    top_logprobs: Annotated[
        int, doc("How many of the likeliest tokens are told at each place.", 0, ge=0, le=20)
    ]
    top_p: Annotated[TopP, doc("The mass of the tokens that it is drawn from.", 1)]
    truncation: Annotated[Literal["disabled"], doc("Always disabled: the input is never cut.")] = "disabled"
    usage: Annotated[
        ResponseUsage | None, doc("The tokens that it took; null until it is completed or incomplete.")
    ] = None
    user: Annotated[str | None, doc("As it was sent.", "user-7")]


class Response(ResponseEcho, kw_only=True):
    """A response, with what it was asked with."""

    id: Annotated[str, doc("Of the response: GET /v1/responses/{id} reads it again.", _ID)]
    object: Literal["response"] = "response"
    created_at: Annotated[Timestamp, doc("When it was asked for, Unix seconds.", 1764241200)]
    status: Annotated[
        Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"],
        doc("Where it stands; the last four are ends.", "completed"),
    ]
    output: Annotated[
        list[OutputItem],
        doc("What the model said and called, in its order, so far.", [MESSAGE_EXAMPLE]),
    ]


class DeletedResponse(ResponseModel):
    """A response that cannot be read any more."""

    id: Annotated[str, doc("Of the response.", _ID)]
    object: Literal["response"] = "response"
    deleted: Annotated[AlwaysTrue, doc("Always true: else the answer is an error.")] = True
