"""Wrappers that give ``Client`` and ``AsyncClient`` the same blocking interface.

Each test can therefore cover both clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from llava_client import Answer, AsyncClient, AsyncConversation, AsyncStream, Client, Model

__all__ = ["AnyClient", "BlockingAsyncClient", "SyncClient"]


class SyncClient:
    """A wrapper around ``Client``."""

    kind = "sync"

    def __init__(self, client: Client) -> None:
        self.client = client
        self.chat = client.chat
        self.models = client.models
        self.stream = client.stream
        self.conversation = client.conversation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def close(self) -> None:
        self.client.close()


class BlockingAsyncClient:
    """A wrapper around ``AsyncClient`` that runs each call to completion on a private event loop."""

    kind = "async"

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._loop = asyncio.new_event_loop()

    def chat(self, *args: Any, **options: Any) -> Answer:
        return self._loop.run_until_complete(self.client.chat(*args, **options))

    def models(self) -> list[Model]:
        return self._loop.run_until_complete(self.client.models())

    def stream(self, *args: Any, **options: Any) -> BlockingStream:
        return BlockingStream(self._loop.run_until_complete(self.client.stream(*args, **options)), self._loop)

    def conversation(self, **options: Any) -> BlockingConversation:
        return BlockingConversation(self.client.conversation(**options), self._loop)

    def __getattr__(self, name: str) -> Any:
        """Wrap any other method. Run coroutines to completion and make async iterators blocking."""
        method = getattr(self.client, name)

        def call(*args: Any, **options: Any) -> Any:
            result = method(*args, **options)
            is_iterator = hasattr(result, "__anext__")
            return self._iterate(result) if is_iterator else self._loop.run_until_complete(result)

        return call

    def _iterate(self, iterator: AsyncIterator[Any]) -> Iterator[Any]:
        ended = object()
        while (item := self._loop.run_until_complete(anext(iterator, ended))) is not ended:
            yield item

    def close(self) -> None:
        self._loop.run_until_complete(self.client.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class BlockingStream:
    """An ``AsyncStream`` with the interface of a ``Stream``."""

    def __init__(self, stream: AsyncStream, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return self._loop.run_until_complete(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> BlockingStream:
        self._loop.run_until_complete(self._stream.__aenter__())
        return self

    def __exit__(self, *exc: Any) -> None:
        self._loop.run_until_complete(self._stream.__aexit__(*exc))

    def answer(self) -> Answer:
        return self._loop.run_until_complete(self._stream.answer())

    def close(self) -> None:
        self._loop.run_until_complete(self._stream.aclose())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class BlockingConversation:
    """An ``AsyncConversation`` with the interface of a ``Conversation``."""

    def __init__(self, conversation: AsyncConversation, loop: asyncio.AbstractEventLoop) -> None:
        self._conversation = conversation
        self._loop = loop

    def ask(self, *args: Any) -> Answer:
        return self._loop.run_until_complete(self._conversation.ask(*args))

    def stream(self, *args: Any) -> BlockingStream:
        return BlockingStream(self._loop.run_until_complete(self._conversation.stream(*args)), self._loop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conversation, name)


AnyClient = SyncClient | BlockingAsyncClient
