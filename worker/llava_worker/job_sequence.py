"""Creates the engine input for a job: the sequence."""

from __future__ import annotations

from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import Job

from llava_worker.engine import Sequence
from llava_worker.engine.core.sequence import Pixels
from llava_worker.language.prompt_builder import Prompt, PromptError

__all__ = ["make_sequence"]


def make_sequence(
    assignment: Assignment, prompt: Prompt, *, context_length: int, deadline_s: float | None = None
) -> Sequence:
    """Return the job's sequence, without its grammar.

    Raises PromptError if the pixel data of an image has the wrong size.
    """
    job = assignment.job
    room = context_length - len(prompt.token_ids)
    max_tokens = job.sampling.max_tokens
    return Sequence(
        seq_id=assignment.assignment_id,
        prompt_ids=prompt.token_ids,
        images=prompt.images,
        pixels=_pixels(assignment, prompt),
        sampling=job.sampling,
        max_new_tokens=room if max_tokens is None else min(max_tokens, room),
        output_ids=list(assignment.token_ids),
        cache_scope=_cache_scope(job),
        is_embedding=job.task == "embed",
        is_normalized=job.is_normalized,
        num_prompt_logprobs=job.num_prompt_logprobs,
        bad_words=prompt.bad_words,
        deadline_s=deadline_s,
    )


def _cache_scope(job: Job) -> str:
    scope = "public" if job.cache_scope == "public" else f"tenant {job.tenant}"
    # The length makes the scope unambiguous, whatever characters the salt contains.
    return f"salt {len(job.cache_salt)} {job.cache_salt} {scope}" if job.cache_salt else scope


def _pixels(assignment: Assignment, prompt: Prompt) -> list[Pixels]:
    pixels: list[Pixels] = []
    images = {image.digest: image for image in assignment.job.images}
    for span in prompt.images:
        image = images[span.digest]
        tiles = assignment.pixels.get(image.digest, b"")
        num_bytes = len(tiles)
        expected_bytes = image.num_bytes
        if num_bytes != expected_bytes:
            raise PromptError(
                ErrorCode.INTERNAL_ERROR,
                f"The pixel data of an image is {num_bytes} bytes instead of {expected_bytes}. Retry the "
                "request.",
            )
        pixels.append(tiles)
    return pixels
