"""Streaming clients for fault tests. Each client reads one response and records what it receives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from llava_client.sse import ServerSentEvent, SSEDecoder

from tests.echo import echo_text
from tests.machine_speed import scaled
from tests.waiting import async_wait_until

__all__ = ["Stream", "Streams", "open_streams", "story"]

MAX_TOKENS = 120


def story(number: int | str) -> str:
    """Return a prompt that depends on ``number``."""
    return f"Tell story number {number}."


class Stream:
    """One streamed response. ``error`` is the error from the server or the transport, if any."""

    def __init__(self, prompt: str, max_tokens: int) -> None:
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.text = ""
        self.num_deltas = 0
        self.logprobs: list[dict[str, Any]] = []
        self.num_comments = 0
        self.last_id = ""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.status = 0
        self.headers: httpx2.Headers = httpx2.Headers()
        self.error: Any = None
        self.has_done_event = False  # [DONE]
        self.task: asyncio.Task[None] | None = None

    @property
    def job_id(self) -> str:
        return self.last_id.partition(":")[0]

    @property
    def is_finished(self) -> bool:
        return self.task is not None and self.task.done()

    def assert_complete(self) -> None:
        """Check that the text and the usage match those of a response without faults."""
        end = (self.error, self.has_done_event, self.finish_reason)
        assert end == (None, True, "length"), end
        assert self.text == echo_text(self.prompt, max_tokens=self.max_tokens)
        assert self.usage
        assert self.usage["completion_tokens"] == self.max_tokens

    async def read(self, response: httpx2.Response) -> None:
        """Read the response to the end. Transport errors are propagated."""
        self.status, self.headers = response.status_code, response.headers
        if response.status_code != 200:
            await response.aread()
            self.error = response.json()["error"]
            return
        decoder = SSEDecoder()
        async for chunk in response.aiter_bytes():
            self.num_comments += chunk.startswith(b":")
            for event in decoder.feed(chunk):
                self._receive(event)

    def _receive(self, event: ServerSentEvent) -> None:
        self.last_id = event.id
        if event.data == "[DONE]":
            self.has_done_event = True
            return
        chunk = json.loads(event.data)
        self.error = chunk.get("error", self.error)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", []):
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            self.logprobs += (choice["logprobs"] or {}).get("content") or []
            if choice["delta"].get("content"):
                self.text += choice["delta"]["content"]
                self.num_deltas += 1


class Streams:
    """Starts streams. Transport errors are recorded in ``Stream.error``."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http
        self.all: list[Stream] = []

    def start(
        self,
        url: str,
        prompt: str,
        *,
        max_tokens: int = MAX_TOKENS,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> Stream:
        body = {
            "model": "echo",
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **fields,
        }
        stream = Stream(prompt, max_tokens)
        request = self.http.build_request("POST", f"{url}/v1/chat/completions", json=body, headers=headers)
        self._run(stream, request)
        return stream

    def start_many(self, urls: Sequence[str], number: int, **fields: Any) -> list[Stream]:
        """Start ``number`` streams with different prompts, distributed across the servers."""
        return [self.start(urls[index % len(urls)], story(index), **fields) for index in range(number)]

    def resume(self, url: str, stream: Stream, **query: str) -> Stream:
        """Resume an interrupted stream. Return a new stream that reads the rest of the response."""
        parameters = {"stream": "true", "include_usage": "true", **query}
        headers = {"Last-Event-ID": stream.last_id} if stream.last_id else {}
        path = f"{url}/v1/chat/completions/{stream.job_id}"
        rest = Stream(stream.prompt, stream.max_tokens)
        self._run(rest, self.http.build_request("GET", path, params=parameters, headers=headers))
        return rest

    async def wait_for_all(self) -> None:
        await async_wait_until(
            lambda: all(stream.is_finished for stream in self.all), "the end of all streams", timeout_s=60
        )

    async def close(self) -> None:
        for stream in self.all:
            assert stream.task
            stream.task.cancel()
        await asyncio.gather(*(stream.task for stream in self.all if stream.task), return_exceptions=True)

    def _run(self, stream: Stream, request: httpx2.Request) -> None:
        stream.task = asyncio.create_task(self._read(stream, request))
        self.all.append(stream)

    async def _read(self, stream: Stream, request: httpx2.Request) -> None:
        response = None
        try:
            response = await self.http.send(request, stream=True)
            await stream.read(response)
        except httpx2.TransportError as error:
            stream.error = error
        finally:
            if response:
                await response.aclose()


@asynccontextmanager
async def open_streams() -> AsyncIterator[Streams]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=scaled(60), limits=limits) as http:
        streams = Streams(http)
        try:
            yield streams
        finally:
            await streams.close()
