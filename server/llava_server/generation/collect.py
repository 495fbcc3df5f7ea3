"""Collect the complete output of a non-streaming request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llava_wire.messages.event import Event, Final, TokenLogprob

from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.metrics import EventObserver

__all__ = ["CollectedChoice", "collect", "num_event_bytes"]

# Typical sizes in JSON.
_SCORE_BYTES = 64  # log probability
_TOKEN_BYTES = 8
_NUMBER_BYTES = 5  # per byte of an embedding, which consists of float32 numbers


@dataclass
class CollectedChoice:
    """The output collected so far for one choice."""

    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Event = Event(0, (), "")
    prompt: tuple[TokenLogprob, ...] = ()
    model_digest: str = ""  # see `Event`

    def add(self, event: Event) -> None:
        """Add the next event."""
        self.parts.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        self.last = event
        self.prompt = self.prompt or event.prompt
        self.model_digest = self.model_digest or event.model_digest

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def final(self) -> Final:
        """The final status of the job. Raises ValueError if the job's last event has not been added."""
        if self.last.final is None:
            raise ValueError("The choice has not finished.")
        return self.last.final


def num_event_bytes(events: Iterable[Event | CollectedChoice]) -> int:
    """Return the approximate size of the JSON text for these events or choices."""
    num_scores = num_bytes = 0
    for event in events:
        num_scores += sum(1 + len(token.top) for tokens in (event.logprobs, event.prompt) for token in tokens)
        num_bytes += len(event.text) + _TOKEN_BYTES * len(event.token_ids)
        if (final := event.last.final if isinstance(event, CollectedChoice) else event.final) is not None:
            num_bytes += _NUMBER_BYTES * len(final.vector)
    return num_bytes + _SCORE_BYTES * num_scores


async def collect(
    outputs: MergedOutputs, first: tuple[int, Event] | None, observers: Sequence[EventObserver]
) -> list[CollectedChoice]:
    """Read all outputs to the end. ``first`` is the first event if the caller has already read it.

    Raises ApiError if a job failed.
    """
    choices = [CollectedChoice() for _ in range(len(outputs))]
    index, event = first or await outputs.next()
    while True:
        observers[index].observe(event)
        if event.final is not None and event.final.error is not None:
            raise outputs.api_error(index, event.final.error)
        choices[index].add(event)
        if outputs.is_finished:
            return choices
        index, event = await outputs.next()
