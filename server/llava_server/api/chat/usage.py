"""Token usage of a request, counted from its events."""

from __future__ import annotations

from typing import Annotated

from llava_wire.messages.event import Event
from msgspec import UNSET, UnsetType

from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["CompletionUsage", "UsageCounter"]


class PromptTokens(ResponseModel):
    """Details of the prompt tokens."""

    cached_tokens: Annotated[
        Count, doc("Number of prompt tokens that were reused from the prefix cache.", 576)
    ]


class CompletionUsage(ResponseModel):
    """Token usage of all choices. Each prompt is counted once, regardless of the number of choices."""

    prompt_tokens: Annotated[Count, doc("Number of prompt tokens, including image tokens.", 612)]
    completion_tokens: Annotated[Count, doc("Number of output tokens, including end-of-sequence tokens.", 9)]
    total_tokens: Annotated[Count, doc("Sum of prompt_tokens and completion_tokens.", 621)]
    prompt_tokens_details: Annotated[
        PromptTokens, doc("Details of the prompt tokens.", {"cached_tokens": 576})
    ]


class UsageCounter:
    """Token counter for one request, updated with the events of all its choices.

    Each prompt is counted once, regardless of the number of choices. The end-of-sequence token counts as an
    output token.
    """

    def __init__(
        self, *, choices_per_prompt: int = 0, in_stream: bool = False, in_chunks: bool = False
    ) -> None:
        """Create a counter.

        If ``choices_per_prompt`` is 0, all choices share one prompt. If ``in_stream`` is true, the usage is
        sent at the end of the stream (``include_usage``). If ``in_chunks`` is true, each chunk contains the
        cumulative usage (``continuous_usage_stats``).
        """
        self.in_stream = in_stream
        self.in_chunks = in_chunks
        self._choices_per_prompt = choices_per_prompt
        self._prompts: dict[int, tuple[int, int]] = {}  # numbers of prompt tokens and cached tokens
        self._outputs: dict[int, int] = {}

    @property
    def num_prompt_tokens(self) -> int:
        return sum(prompt for prompt, _ in self._prompts.values())

    @property
    def num_cached_tokens(self) -> int:
        return sum(cached for _, cached in self._prompts.values())

    @property
    def num_output_tokens(self) -> int:
        return sum(self._outputs.values())

    def observe(self, index: int, event: Event) -> None:
        """Update the counts with the next event of choice ``index``."""
        prompt, choice = divmod(index, self._choices_per_prompt) if self._choices_per_prompt else (0, index)
        if event.final is not None and choice == 0:
            self._prompts[prompt] = (event.final.num_prompt_tokens, event.final.num_cached_tokens)
        elif event.num_prompt_tokens:
            self._prompts.setdefault(prompt, (event.num_prompt_tokens, 0))
        self._outputs[index] = event.next_offset

    def total(self) -> CompletionUsage:
        """Return the cumulative usage in OpenAI's format."""
        prompt, output = self.num_prompt_tokens, self.num_output_tokens
        return CompletionUsage(prompt, output, prompt + output, PromptTokens(self.num_cached_tokens))

    def for_chunk(self) -> CompletionUsage | UnsetType | None:
        """Return the ``usage`` field of a chunk with choices: UNSET, None or the cumulative usage."""
        if self.in_chunks:
            return self.total()
        return None if self.in_stream else UNSET
