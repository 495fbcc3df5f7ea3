"""Events in the words of OpenAI's plain completions: texts, with the older form of log-probabilities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from llava_wire import Event, Job, TokenLogprob

from llava_server.registry import ServedModel
from llava_server.schemas_completion import CompletionRequest
from llava_server.sse import DONE, encode_error, encode_event
from llava_server.usage import UsageTally
from llava_server.writer import WholeAnswer, token_text

__all__ = ["CompletionWriter"]


class CompletionWriter:
    """Writes one request's answers; ``job`` is that of the first."""

    def __init__(self, request: CompletionRequest, job: Job, model: ServedModel) -> None:
        self._head: dict[str, Any] = {
            "id": job.job_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": job.model,
            "system_fingerprint": model.fingerprint,
        }
        self._request = request
        self._tally = UsageTally(choices_per_prompt=request.num_choices)
        self._offsets: dict[int, int] = {}  # by answer: characters of it that tokens have told

    def opening(self, num_choices: int) -> bytes:
        """The prompts, where they are to be echoed."""
        if not self._request.echo:
            return b""
        return b"".join(encode_event(self._chunk(index, self._echo(index))) for index in range(num_choices))

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """An answer's next chunk; empty where there is nothing to tell yet."""
        self._tally.saw(index, event)
        if not event.text and not event.logprobs and event.final is None:
            return b""
        chunk = self._chunk(
            index,
            event.text,
            logprobs=self._logprobs(index, event.logprobs) if event.logprobs else None,
            finish_reason=event.final.reason.value if event.final else None,
        )
        return encode_event(chunk, event_id=event_id)

    def closing(self) -> bytes:
        """What comes after all answers: the usage if it was asked for."""
        if not self._request.tells_usage:
            return DONE
        return encode_event({**self._head, "choices": [], "usage": self._tally.usage()}) + DONE

    def failure(self, body: bytes) -> bytes:
        """The error as the stream's last event."""
        return encode_error(body)

    def whole(self, answers: Sequence[WholeAnswer]) -> dict[str, Any]:
        """All answers at once."""
        for index, answer in enumerate(answers):
            self._tally.saw(index, answer.last)
        choices = [
            {
                "index": index,
                "text": self._echo(index) + "".join(answer.parts),
                "logprobs": self._logprobs(index, answer.logprobs),
                "finish_reason": answer.last.final.reason.value if answer.last.final else None,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": self._tally.usage()}

    def _chunk(
        self, index: int, text: str, *, logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._head, "choices": [choice]}
        if self._request.tells_usage_always:
            return {**chunk, "usage": self._tally.usage()}
        return {**chunk, "usage": None} if self._request.tells_usage else chunk

    def _echo(self, index: int) -> str:
        if not self._request.echo:
            return ""
        return str(self._request.prompts[index // self._request.num_choices])

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._request.num_logprobs is None:
            return None
        offsets = []
        for token in logprobs:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.chosen.text.decode(errors="ignore"))
        return {
            "tokens": [token_text(token.chosen) for token in logprobs],
            "token_logprobs": [token.chosen.logprob for token in logprobs],
            "top_logprobs": [
                {token_text(other): other.logprob for other in (token.chosen, *token.top)}
                for token in logprobs
            ],
            "text_offset": offsets,
        }
