"""Prepares pulled jobs for the engine: chat template, tokenization, detokenization and grammar.

    job  ->  prompt threads: PromptBuilder  ->  grammar threads: GrammarCache  ->  sequence

A single request can make this work expensive, so it runs in threads that tenants share fairly. A job of
another tenant starts after at most one such call. Compiling a grammar can take seconds, so there are separate
threads for it: jobs without a grammar, and jobs whose grammar is cached, never wait for a compilation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from anyio import move_on_after
from llava_wire.messages.event import ErrorCode, JobError
from llava_wire.messages.job import Job
from llava_wire.messages.sampling_params import Grammar

from llava_worker.engine import Sequence
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar
from llava_worker.fair_threads import FairThreads
from llava_worker.job_output import JobOutput
from llava_worker.job_sequence import make_sequence
from llava_worker.language.prompt_builder import PromptBuilder, PromptError

if TYPE_CHECKING:
    from llava_worker.engine.structured_output.grammar import CompiledGrammar
    from llava_worker.engine.structured_output.grammar_cache import GrammarCache

__all__ = ["JobPreparation"]

# With two threads, a tenant uses one of them at a time, and the other one is left to other tenants.
_NUM_PROMPT_THREADS = 2
_NUM_GRAMMAR_THREADS = 2

logger = logging.getLogger(__name__)


class _GrammarError(Exception):
    """The job's grammar could not be compiled. The job fails with ``error``."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


class JobPreparation:
    """Prepares jobs for one engine. ``grammars`` is None if the model has no structured output."""

    def __init__(self, prompts: PromptBuilder, grammars: GrammarCache | None, *, context_length: int) -> None:
        self._prompts = prompts
        self._grammars = grammars
        self._context_length = context_length
        self._prompt_threads = FairThreads(_NUM_PROMPT_THREADS, "prompt")
        self._grammar_threads = FairThreads(_NUM_GRAMMAR_THREADS, "grammar")

    async def prepare(self, output: JobOutput) -> Sequence | None:
        """Start the output, and return the job's sequence, or None if the output is finished.

        The job fails if its deadline expires in the meantime.
        """
        remaining_s = output.assignment.remaining_s
        deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
        try:
            with move_on_after(remaining_s):
                return await self._prepare(output, deadline_s)
        except (PromptError, _GrammarError) as error:
            output.fail(error.error)
            return None
        message = "The request reached its deadline before its prompt was processed. Retry later."
        output.fail(JobError(ErrorCode.DEADLINE_EXCEEDED, message))
        return None

    async def run(self, tenant: str, call: Callable[[], None]) -> None:
        """Run other work that depends on the length of a prompt, in the same threads as tokenization."""
        await self._prompt_threads.run(tenant, call)

    def close(self) -> None:
        """Wait until all running calls have returned, and kill the processes that compile grammars."""
        self._prompt_threads.close()
        self._grammar_threads.close()
        if self._grammars is not None:
            self._grammars.close()

    async def _prepare(self, output: JobOutput, deadline_s: float | None) -> Sequence | None:
        """Raises PromptError or _GrammarError."""
        assignment, job = output.assignment, output.assignment.job
        prompt = await self._prompt_threads.run(job.tenant, partial(self._prompts.build, job))
        output.start(prompt)
        if output.is_finished:
            return None
        sequence = make_sequence(
            assignment, prompt, context_length=self._context_length, deadline_s=deadline_s
        )
        if job.sampling.grammar is not None:
            sequence.grammar = await self._compile(job.sampling.grammar, job)
        return sequence

    async def _compile(self, grammar: Grammar, job: Job) -> CompiledGrammar:
        """Raises _GrammarError."""
        grammars = self._grammars
        try:
            if grammars is None:
                raise UnsupportedGrammar(f"model {job.model!r} does not support structured output")
            if (compiled := grammars.find(grammar)) is not None:
                return compiled
            return await self._grammar_threads.run(job.tenant, partial(grammars.compile, grammar))
        except UnsupportedGrammar as error:
            param = error.param or grammar.param or "response_format"
            message = error.client_message(grammar.kind)
            raise _GrammarError(JobError(ErrorCode.INVALID_REQUEST, message, param)) from error
        except Exception as error:  # end the job, whatever the error is
            logger.exception("job_id=%s: grammar compilation failed", job.job_id)
            message = "The grammar could not be compiled because of an internal error."
            raise _GrammarError(JobError(ErrorCode.INTERNAL_ERROR, message)) from error
