"""Handle requests that are chats, or are converted to chats: load their images, build their jobs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from llava_server.api.chat.jobs import image_sources, to_jobs
from llava_server.api.chat.request import AssistantMessage, ChatRequest, ImagePart, TextPart
from llava_server.api.handler import Generation, JobSet, RequestHandler, load_image
from llava_server.api.parse import check_num_images, check_text
from llava_server.api.tools.prompt import tools_text
from llava_server.generation.disconnect import cancel_on_disconnect
from llava_server.lifespan import Services
from llava_server.settings import Settings
from llava_server.tracing import span

__all__ = ["ChatHandler", "build_chat_jobs"]

_PUBLIC_SCOPE = "*"  # owner of images with cache_scope public; no tenant has this name

T = TypeVar("T")


class ChatHandler(RequestHandler):
    """Handles one chat of any API."""

    async def start(self, parse: Callable[[bytes], tuple[T, ChatRequest]]) -> tuple[T, Generation]:
        """Take the first three steps of a chat; cancelled if the client disconnects.

        ``parse`` returns the request in its API's form and as a chat.
        """
        return await cancel_on_disconnect(self._request.receive, self._start(parse))

    async def _start(self, parse: Callable[[bytes], tuple[T, ChatRequest]]) -> tuple[T, Generation]:
        with self.body() as raw:
            request, chat = await self.parse(raw, parse)
            jobs = await self.build_jobs(chat)
        return request, await self.submit(jobs, is_resumable=self.idempotency_key is not None)

    async def build_jobs(self, chat: ChatRequest) -> JobSet:
        """Return the jobs of a chat."""
        return await build_chat_jobs(
            self.services, chat, tenant=self.tenant, idempotency_key=self.idempotency_key
        )


async def build_chat_jobs(
    services: Services, chat: ChatRequest, *, tenant: str, idempotency_key: str | None
) -> JobSet:
    """Check the chat's size, look up its model, load its images and return its jobs. Raises ApiError.

    With an ``idempotency_key`` the same chat has the same jobs on every controller.
    """
    _check_sizes(chat, services.settings)
    model = await services.registry.find(chat.model)
    owner = _PUBLIC_SCOPE if chat.cache_scope == "public" else tenant
    sources = image_sources(chat)
    with span("pictures", num_pictures=len(sources)) if sources else nullcontext():
        images = [await load_image(services, source, model, owner) for source in sources]
    ttl_s = services.settings.request_timeout_s
    jobs = to_jobs(chat, images, model, tenant=tenant, ttl_s=ttl_s, idempotency_key=idempotency_key)
    return JobSet(model, jobs, {image.ref.digest: image.pixels for image in images})


def _check_sizes(chat: ChatRequest, settings: Settings) -> None:
    """Check a chat's size against this server's limits. Raises ApiError; the worker checks the context."""
    num_bytes, num_images = len(tools_text(chat).encode()), 0
    for message in chat.messages:
        parts = [message.content] if isinstance(message.content, str) else message.content or []
        for part in parts:
            text = part if isinstance(part, str) else part.text if isinstance(part, TextPart) else ""
            num_bytes += len(text.encode())
            num_images += isinstance(part, ImagePart)
        if isinstance(message, AssistantMessage):
            num_bytes += sum(len(call.function.arguments.encode()) for call in message.tool_calls or ())
    check_num_images(num_images, settings.max_images, param="messages")
    check_text(num_bytes, settings.max_text_kb * 1024, param="messages")
