"""Events in OpenAI's words: chunks of a stream, or one completion with all its choices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_wire import Event, Final, TokenLogprob, TokenScore

__all__ = ["AnswerWriter", "WholeAnswer"]


@dataclass
class WholeAnswer:
    """One choice, as far as its events have come."""

    parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Event = Event(0, (), "")

    def add(self, event: Event) -> None:
        """The next event."""
        self.parts.append(event.text)
        self.logprobs += event.logprobs
        self.last = event


class AnswerWriter:
    """Writes one request's answers; ``job_id`` is that of its first choice."""

    def __init__(
        self,
        job_id: str,
        model: str,
        fingerprint: str | None,
        *,
        include_usage: bool,
        tells_logprobs: bool = True,
    ) -> None:
        self._head: dict[str, Any] = {
            "id": job_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._include_usage = include_usage
        self._tells_logprobs = tells_logprobs

    def opening(self, index: int) -> dict[str, Any]:
        """A choice's first chunk: who speaks."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def text(self, index: int, event: Event) -> dict[str, Any]:
        """A chunk with the next piece of text, which may be empty, and its tokens' log-probabilities."""
        logprobs = self._logprobs(event.logprobs) if event.logprobs else None
        return self._chunk(index, {"content": event.text}, None, logprobs)

    def ending(self, index: int, final: Final) -> dict[str, Any]:
        """A choice's last chunk: why the answer ended."""
        return self._chunk(index, {}, final.reason.value)

    def usage(self, lasts: Sequence[Event]) -> dict[str, Any]:
        """The chunk after all choices, if it was asked for: only numbers. ``lasts`` are their last events."""
        return {**self._head, "choices": [], "usage": _usage(lasts)}

    def completion(self, answers: Sequence[WholeAnswer]) -> dict[str, Any]:
        """All choices at once."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(answer.parts), "refusal": None},
                "logprobs": self._logprobs(answer.logprobs) if self._tells_logprobs else None,
                "finish_reason": answer.last.final.reason.value if answer.last.final else None,
            }
            for index, answer in enumerate(answers)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": _usage([answer.last for answer in answers]),
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._head, "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        content = [
            {**_score(token.chosen), "top_logprobs": [_score(other) for other in token.top]}
            for token in logprobs
        ]
        return {"content": content, "refusal": None}


def _score(score: TokenScore) -> dict[str, Any]:
    """A token without text, such as the end mark, is named by its id, as in vLLM."""
    token = score.text.decode(errors="replace") or f"token_id:{score.token_id}"
    return {"token": token, "logprob": score.logprob, "bytes": list(score.text)}


def _usage(lasts: Sequence[Event]) -> dict[str, Any]:
    """Token counts of all choices, the prompt's once; the end mark is a token of the answer too."""
    final = lasts[0].final
    prompt, cached = (final.num_prompt_tokens, final.num_cached_tokens) if final else (0, 0)
    answer = sum(last.next_offset for last in lasts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
