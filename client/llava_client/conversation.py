"""Conversations, which send all previous turns with each question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llava_client.answer_formats import format_question
from llava_client.chat_request import ChatOptions, user_message
from llava_client.images import Images
from llava_client.stream import AsyncStream, Stream
from llava_client.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AsyncConversation", "Conversation"]


class ChatClient(Protocol):
    """The methods of ``Client`` that conversations use."""

    def chat(self, *, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]) -> Answer: ...

    def stream(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        on_close: Callable[[str], None],
        **options: Unpack[ChatOptions],
    ) -> Stream: ...


class AsyncChatClient(Protocol):
    """The methods of ``AsyncClient`` that conversations use."""

    async def chat(
        self, *, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]
    ) -> Answer: ...

    async def stream(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        on_close: Callable[[str], None],
        **options: Unpack[ChatOptions],
    ) -> AsyncStream: ...


class _ConversationHistory:
    """The turns in a conversation.

    A question and its response are recorded together, and only if text was received. If a response ends
    early, the part that was received is recorded.
    """

    def __init__(self, image: Images, options: ChatOptions) -> None:
        self.messages: list[dict[str, Any]] = []
        self._image = image
        self._format = options.get("format")
        self._options: ChatOptions = {**options, "format": None}  # applied by _next_turn

    def reset(self) -> None:
        """Remove all turns and any image added for the next question."""
        self.messages.clear()
        self._image = None

    def show(self, image: Images) -> None:
        """Add ``image`` to the next question."""
        self._image = image

    def _next_turn(self, question: str, image: Images) -> tuple[list[dict[str, Any]], Callable[[str], None]]:
        """Return the messages to send and a function that takes the response text and records the turn."""
        text = format_question(question, self._format) or question
        turn = user_message(text, self._image if image is None else image)

        def record(response: str) -> None:
            if response:
                self._image = None
                self.messages += [turn, {"role": "assistant", "content": response}]

        return [*self.messages, turn], record


class Conversation(_ConversationHistory):
    """A conversation, created by ``Client.conversation``. ``messages`` holds the turns in OpenAI's format."""

    def __init__(
        self, client: ChatClient, *, image: Images = None, options: ChatOptions | None = None
    ) -> None:
        super().__init__(image, options or {})
        self._client = client

    def ask(self, question: str, image: Images = None) -> Answer:
        """Send the next question. Raises the same errors as ``Client.chat``.

        A failed turn is not recorded.
        """
        messages, record = self._next_turn(question, image)
        answer = self._client.chat(messages=messages, **self._options)
        record(answer.text)
        return answer

    def stream(self, question: str, image: Images = None) -> Stream:
        """Send the next question and stream the response. The turn is recorded when the stream closes."""
        messages, record = self._next_turn(question, image)
        return self._client.stream(messages=messages, on_close=record, **self._options)


class AsyncConversation(_ConversationHistory):
    """The asyncio version of ``Conversation``, created by ``AsyncClient.conversation``."""

    def __init__(
        self, client: AsyncChatClient, *, image: Images = None, options: ChatOptions | None = None
    ) -> None:
        super().__init__(image, options or {})
        self._client = client

    async def ask(self, question: str, image: Images = None) -> Answer:
        """Send the next question. Raises the same errors as ``Client.chat``.

        A failed turn is not recorded.
        """
        messages, record = self._next_turn(question, image)
        answer = await self._client.chat(messages=messages, **self._options)
        record(answer.text)
        return answer

    async def stream(self, question: str, image: Images = None) -> AsyncStream:
        """Send the next question and stream the response. The turn is recorded when the stream closes."""
        messages, record = self._next_turn(question, image)
        return await self._client.stream(messages=messages, on_close=record, **self._options)
