"""A conversation of several turns, which sends the earlier turns with each question."""

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
    """What a conversation needs of ``Client``."""

    def chat(self, *, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]) -> Answer: ...

    def stream(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        on_close: Callable[[str], None],
        **options: Unpack[ChatOptions],
    ) -> Stream: ...


class AsyncChatClient(Protocol):
    """What a conversation needs of ``AsyncClient``."""

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
    """The turns so far. A question is added only together with its answer, so a failed turn is not recorded.

    Of an answer that was stopped, the part that was received is recorded.
    """

    def __init__(self, image: Images, options: ChatOptions) -> None:
        self.messages: list[dict[str, Any]] = []
        self._image = image
        self._format = options.get("format")
        self._options: ChatOptions = {**options, "format": None}  # _next_turn applies it

    def reset(self) -> None:
        """Forget all turns, and a picture that was waiting for its question."""
        self.messages.clear()
        self._image = None

    def show(self, image: Images) -> None:
        """Put ``image`` beside the next question."""
        self._image = image

    def _next_turn(self, question: str, image: Images) -> tuple[list[dict[str, Any]], Callable[[str], None]]:
        """Return the messages to send and a function that records the turn with the answer's text."""
        text = format_question(question, self._format) or question
        turn = user_message(text, self._image if image is None else image)

        def record(answer: str) -> None:
            if answer:
                self._image = None
                self.messages += [turn, {"role": "assistant", "content": answer}]

        return [*self.messages, turn], record


class Conversation(_ConversationHistory):
    """Made by ``Client.conversation``; ``messages`` holds the turns, OpenAI-style."""

    def __init__(
        self, client: ChatClient, *, image: Images = None, options: ChatOptions | None = None
    ) -> None:
        super().__init__(image, options or {})
        self._client = client

    def ask(self, question: str, image: Images = None) -> Answer:
        """The next turn, answered whole. Raises as ``Client.chat`` does; then nothing is remembered."""
        messages, record = self._next_turn(question, image)
        answer = self._client.chat(messages=messages, **self._options)
        record(answer.text)
        return answer

    def stream(self, question: str, image: Images = None) -> Stream:
        """The next turn, piece by piece. It is remembered when the stream closes."""
        messages, record = self._next_turn(question, image)
        return self._client.stream(messages=messages, on_close=record, **self._options)


class AsyncConversation(_ConversationHistory):
    """Made by ``AsyncClient.conversation``; the same as ``Conversation``, awaited."""

    def __init__(
        self, client: AsyncChatClient, *, image: Images = None, options: ChatOptions | None = None
    ) -> None:
        super().__init__(image, options or {})
        self._client = client

    async def ask(self, question: str, image: Images = None) -> Answer:
        """The next turn, answered whole. Raises as ``Client.chat`` does; then nothing is remembered."""
        messages, record = self._next_turn(question, image)
        answer = await self._client.chat(messages=messages, **self._options)
        record(answer.text)
        return answer

    async def stream(self, question: str, image: Images = None) -> AsyncStream:
        """The next turn, piece by piece. It is remembered when the stream closes."""
        messages, record = self._next_turn(question, image)
        return await self._client.stream(messages=messages, on_close=record, **self._options)
