"""Python client for llava-serve: ask questions about images over HTTP.

    from llava_client import Client

    with Client() as client:
        print(client.chat("What is this?", image="photo.png").text)
        for delta in client.stream("Describe it.", image="photo.png"):
            print(delta, end="", flush=True)

``AsyncClient`` is the asyncio version and provides the same methods.

A module is imported when one of its names is first used, because all of them take 0.1 s of CPU time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava_client.answer_formats import FORMATS, FormatName
    from llava_client.async_client import AsyncClient
    from llava_client.batches import Batch, BatchCounts, BatchIssue, BatchResult, batch_request
    from llava_client.chat_request import ChatOptions, user_message
    from llava_client.client import Client
    from llava_client.conversation import AsyncConversation, Conversation
    from llava_client.errors import (
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        ConfigurationError,
        ConflictError,
        ImageError,
        InternalServerError,
        LlavaError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        ServiceUnavailableError,
        StreamInterrupted,
    )
    from llava_client.images import ImageInput
    from llava_client.retries import RetryPolicy
    from llava_client.stream import AsyncStream, Stream
    from llava_client.types import (
        Answer,
        Choice,
        Embeddings,
        Model,
        TokenLogprob,
        TokenScore,
        ToolCall,
        Usage,
    )

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Answer",
    "AsyncClient",
    "AsyncConversation",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "Batch",
    "BatchCounts",
    "BatchIssue",
    "BatchResult",
    "ChatOptions",
    "Choice",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "Conversation",
    "Embeddings",
    "FORMATS",
    "FormatName",
    "ImageError",
    "ImageInput",
    "InternalServerError",
    "LlavaError",
    "Model",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RetryPolicy",
    "ServiceUnavailableError",
    "Stream",
    "StreamInterrupted",
    "TokenLogprob",
    "TokenScore",
    "ToolCall",
    "Usage",
    "batch_request",
    "user_message",
]

_MODULES = {
    "answer_formats": (
        "FORMATS",
        "FormatName",
    ),
    "async_client": ("AsyncClient",),
    "batches": (
        "Batch",
        "BatchCounts",
        "BatchIssue",
        "BatchResult",
        "batch_request",
    ),
    "chat_request": (
        "ChatOptions",
        "user_message",
    ),
    "client": ("Client",),
    "conversation": (
        "AsyncConversation",
        "Conversation",
    ),
    "errors": (
        "APIConnectionError",
        "APIError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "ConfigurationError",
        "ConflictError",
        "ImageError",
        "InternalServerError",
        "LlavaError",
        "NotFoundError",
        "PermissionDeniedError",
        "RateLimitError",
        "ServiceUnavailableError",
        "StreamInterrupted",
    ),
    "images": ("ImageInput",),
    "retries": ("RetryPolicy",),
    "stream": (
        "AsyncStream",
        "Stream",
    ),
    "types": (
        "Answer",
        "Choice",
        "Embeddings",
        "Model",
        "TokenLogprob",
        "TokenScore",
        "ToolCall",
        "Usage",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import the module of a name in ``__all__``, and return the name's value."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value
