"""Creates the engine input for a job: the sequence and the compiled grammar."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import ErrorCode, JobError
from llava_wire.messages.job import Job
from llava_wire.messages.sampling_params import Grammar

from llava_worker.engine import Sequence
from llava_worker.engine.core.sequence import Pixels
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar
from llava_worker.language.prompt_builder import Prompt, PromptError

if TYPE_CHECKING:
    from llava_worker.engine.structured_output.grammar import CompiledGrammar
    from llava_worker.engine.structured_output.grammar_cache import GrammarCache

__all__ = ["GrammarError", "compile_grammar", "make_sequence"]

logger = logging.getLogger(__name__)


class GrammarError(Exception):
    """The job's grammar could not be compiled. The job fails with ``error``."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


def make_sequence(assignment: Assignment, prompt: Prompt, *, context_length: int) -> Sequence:
    """Return the job's sequence. Raises PromptError if the pixel data of an image has the wrong size."""
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
        deadline_s=None if assignment.remaining_s is None else time.monotonic() + assignment.remaining_s,
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


async def compile_grammar(grammars: GrammarCache | None, grammar: Grammar, job: Job) -> CompiledGrammar:
    """Compile the grammar in a thread, so that running streams are not delayed. Raises GrammarError.

    ``grammars`` is None if the model does not support structured output.
    """
    try:
        if grammars is None:
            raise UnsupportedGrammar(f"model {job.model!r} does not support structured output")
        return await asyncio.to_thread(grammars.compile, grammar)
    except UnsupportedGrammar as error:
        param = error.param or grammar.param or "response_format"
        message = error.client_message(grammar.kind)
        raise GrammarError(JobError(code=ErrorCode.INVALID_REQUEST, message=message, param=param)) from error
    except Exception as error:  # end the job, whatever the error is
        logger.exception("job_id=%s: grammar compilation failed", job.job_id)
        message = "The grammar could not be compiled because of an internal error."
        raise GrammarError(JobError(code=ErrorCode.INTERNAL_ERROR, message=message)) from error
