"""Rejects prompts that are certainly too long before they are stored in Redis and sent to a worker."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llava_wire.messages.job import Job

from llava_server.errors import ApiError
from llava_server.worker_registry import ServedModel

__all__ = ["check_prompt_lengths"]


def check_prompt_lengths(jobs: Sequence[Job], model: ServedModel, field: str | Sequence[str]) -> None:
    """Raise ApiError if the text of a job has more tokens than the model's context length in any case.

    Only the worker can count the tokens, but each of them represents at most ``model.max_token_bytes`` bytes.
    ``field`` is the name of the request field that contains the prompt, or a list with one name per job.
    """
    if not model.max_token_bytes:
        return
    for index, job in enumerate(jobs):
        if not job.needs_model or job.truncate_prompt_tokens is not None:
            continue
        # A character has at least one byte, and counting the bytes would take time in proportion to the text.
        num_bytes = sum(
            len(part) for message in job.messages for part in message.parts if isinstance(part, str)
        )
        num_tokens = math.ceil(num_bytes / model.max_token_bytes)
        if num_tokens >= model.context_length:
            raise ApiError(
                "context_length_exceeded",
                f"The prompt has at least {num_tokens} tokens. The model's context length is "
                f"{model.context_length} tokens for prompt and output. Shorten the text.",
                param=field if isinstance(field, str) else field[index],
            )
