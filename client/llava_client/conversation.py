"""A talk of several turns: remembers what was said, so that the next question can refer to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llava_client.answer_formats import format_question
from llava_client.chat_request import ChatOptions, user_message
from llava_client.images import Images
from llava_client.types import Answer

if TYPE_CHECKING:
    from llava_client.async_client import AsyncClient
    from llava_client.client import Client
    from llava_client.stream import AsyncStream, Stream

__all__ = ["AsyncConversation", "Conversation"]


class _History:
    """The turns so far. A question enters only together with its answer, so a failed one leaves no trace;
    of an answer that was stopped, the part that was seen is remembered."""

    def __init__(self, image: Images, options: ChatOptions) -> None:
        self.messages: list[dict[str, Any]] = []
        self._image = image
        self._format = options.get("format")
        self._options: ChatOptions = {**options, "format": None}  # it is part of each question here

    def reset(self) -> None:
        """Forget all turns, and a picture that was waiting for its question."""
        self.messages.clear()
        self._image = None

    def show(self, image: Images) -> None:
        """Put ``image`` beside the next question."""
        self._image = image

    def _next(self, question: str, image: Images) -> tuple[list[dict[str, Any]], Callable[[str], None]]:
        """The messages to send, and what to call with the answer's text."""
        asked = format_question(question, self._format) or question
        turn = user_message(asked, self._image if image is None else image)

        def remember(text: str) -> None:
            if text:
                self._image = None
                self.messages += [turn, {"role": "assistant", "content": text}]

        return [*self.messages, turn], remember


class Conversation(_History):
    """Made by ``Client.conversation``; ``messages`` holds the turns, OpenAI-style."""

    def __init__(self, client: Client, *, image: Images = None, options: ChatOptions | None = None) -> None:
        super().__init__(image, options or {})
        self._client = client

    def ask(self, question: str, image: Images = None) -> Answer:
        """The next turn, answered whole. Raises as ``Client.chat`` does; then nothing is remembered."""
        messages, remember = self._next(question, image)
        answer = self._client.chat(messages=messages, **self._options)
        remember(answer.text)
        return answer

    def stream(self, question: str, image: Images = None) -> Stream:
        """The next turn, piece by piece. It is remembered when the stream closes."""
        messages, remember = self._next(question, image)
        return self._client.stream(messages=messages, on_close=remember, **self._options)


class AsyncConversation(_History):
    """Made by ``AsyncClient.conversation``; the same as ``Conversation``, awaited."""

    def __init__(
        self, client: AsyncClient, *, image: Images = None, options: ChatOptions | None = None
    ) -> None:
        super().__init__(image, options or {})
        self._client = client

    async def ask(self, question: str, image: Images = None) -> Answer:
        """The next turn, answered whole. Raises as ``Client.chat`` does; then nothing is remembered."""
        messages, remember = self._next(question, image)
        answer = await self._client.chat(messages=messages, **self._options)
        remember(answer.text)
        return answer

    async def stream(self, question: str, image: Images = None) -> AsyncStream:
        """The next turn, piece by piece. It is remembered when the stream closes."""
        messages, remember = self._next(question, image)
        return await self._client.stream(messages=messages, on_close=remember, **self._options)
