"""How many tokens a request has taken so far."""

from __future__ import annotations

from typing import Any

from llava_wire.messages.event import Event

__all__ = ["UsageTally"]


class UsageTally:
    """Shown the events of all choices. A prompt counts once, whatever the number of its choices; the end mark
    is a token of the answer too."""

    def __init__(self, *, choices_per_prompt: int = 0) -> None:
        """0: all choices have one prompt."""
        self._choices_per_prompt = choices_per_prompt
        self._prompts: dict[int, tuple[int, int]] = {}  # tokens, and those of them that a worker had computed
        self._answers: dict[int, int] = {}

    @property
    def num_prompt_tokens(self) -> int:
        return sum(prompt for prompt, _ in self._prompts.values())

    @property
    def num_cached_tokens(self) -> int:
        return sum(cached for _, cached in self._prompts.values())

    @property
    def num_answer_tokens(self) -> int:
        return sum(self._answers.values())

    def saw(self, index: int, event: Event) -> None:
        """The next event of a choice."""
        each = self._choices_per_prompt
        prompt, choice = divmod(index, each) if each else (0, index)
        if event.final is not None and choice == 0:
            self._prompts[prompt] = (event.final.num_prompt_tokens, event.final.num_cached_tokens)
        elif event.num_prompt_tokens:
            self._prompts.setdefault(prompt, (event.num_prompt_tokens, 0))
        self._answers[index] = event.next_offset

    def usage(self) -> dict[str, Any]:
        """In OpenAI's words."""
        prompt, answer = self.num_prompt_tokens, self.num_answer_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }
