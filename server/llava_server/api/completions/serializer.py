"""Events in the words of OpenAI's plain completions: texts, with the older form of log-probabilities."""

from __future__ import annotations

import codecs
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from llava_wire.messages.event import Event, TokenLogprob, TokenScore
from llava_wire.messages.job import Job

from llava_server.api.chat.logprobs_text import token_text
from llava_server.api.completions.request import CompletionRequest
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.sse import DONE, encode_error, encode_event
from llava_server.generation.usage import UsageTally
from llava_server.worker_registry import ServedModel

__all__ = ["CompletionSerializer"]


class CompletionSerializer:
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
        self._cursors: defaultdict[int, _Cursor] = defaultdict(_Cursor)  # by answer

    def begin(self, num_choices: int) -> bytes:  # noqa: ARG002
        """Nothing: a prompt that is echoed comes with its answer's first event."""
        return b""

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """An answer's next chunks; empty where there is nothing to tell yet."""
        self._tally.saw(index, event)
        chunks = list(self._chunks(index, event))
        ids = [*[None] * (len(chunks) - 1), event_id]
        return b"".join(
            encode_event(chunk, event_id=own_id) for chunk, own_id in zip(chunks, ids, strict=False)
        )

    def end(self) -> bytes:
        """What comes after all answers: the usage if it was asked for."""
        if not self._request.tells_usage:
            return DONE
        return encode_event({**self._head, "choices": [], "usage": self._tally.usage()}) + DONE

    def error(self, body: bytes) -> bytes:
        """The error as the stream's last event."""
        return encode_error(body)

    def to_response(self, choices: Sequence[CollectedChoice]) -> dict[str, Any]:
        """All answers at once."""
        for index, choice in enumerate(choices):
            self._tally.saw(index, choice.last)
        written = [
            {
                "index": index,
                "text": self._echo(index, choice.prompt) + choice.text,
                "logprobs": self._logprobs(index, choice.prompt, choice.logprobs),
                "finish_reason": choice.last.final.reason.value if choice.last.final else None,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": written, "usage": self._tally.usage()}

    def _chunks(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
        """The prompt's, if the event tells it, and the answer's."""
        if event.prompt:
            logprobs = self._logprobs(index, event.prompt, ())
            yield self._chunk(index, self._echo(index, event.prompt), logprobs=logprobs)
        if event.text or event.logprobs or event.final is not None:
            yield self._chunk(
                index,
                event.text,
                logprobs=self._logprobs(index, (), event.logprobs) if event.logprobs else None,
                finish_reason=event.final.reason.value if event.final else None,
            )

    def _chunk(
        self, index: int, text: str, *, logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._head, "choices": [choice]}
        if self._request.tells_usage_always:
            return {**chunk, "usage": self._tally.usage()}
        return {**chunk, "usage": None} if self._request.tells_usage else chunk

    def _echo(self, index: int, prompt: Sequence[TokenLogprob]) -> str:
        """The prompt as it was sent, or its tokens' text; empty where none was told."""
        if not prompt:
            return ""
        sent = self._request.prompts[index // self._request.num_choices]
        tokens = b"".join(token.chosen.text for token in prompt)
        return sent if isinstance(sent, str) else tokens.decode(errors="replace")

    def _logprobs(
        self, index: int, prompt: Sequence[TokenLogprob], answer: Sequence[TokenLogprob]
    ) -> dict[str, Any] | None:
        """Of the prompt's tokens, told at its beginning, and of the answer's next ones."""
        if self._request.num_logprobs is None:
            return None
        offsets = [self._cursors[index].move(token.chosen.text) for token in prompt]
        if prompt:
            self._cursors[index] = _Cursor(len(self._echo(index, prompt)))
        offsets += [self._cursors[index].move(token.chosen.text) for token in answer]
        tokens = [*prompt, *answer]
        logprobs: list[float | None] = [token.chosen.logprob for token in tokens]
        top: list[dict[str, float] | None] = [
            {_name(other): other.logprob for other in (token.chosen, *token.top)} for token in tokens
        ]
        if prompt:
            logprobs[0] = top[0] = None  # nothing stands before it
        return {
            "tokens": [_name(token.chosen) for token in tokens],
            "token_logprobs": logprobs,
            "top_logprobs": top,
            "text_offset": offsets,
        }


class _Cursor:
    """Where in the text the next token begins. A character of several tokens counts with its last one."""

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def move(self, text: bytes) -> int:
        """Behind the token; where it began."""
        begin = self._offset
        self._offset += len(self._decoder.decode(text))
        return begin


def _name(score: TokenScore) -> str:
    """In OpenAI's words: names are keys here, so parts of characters must not all be called alike."""
    try:
        score.text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in score.text)
    return token_text(score)
