"""A request's grammar, compiled beside the streams that run, or the error that its answer ends with."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from llava_wire.messages.event import ErrorCode, JobError
from llava_wire.messages.job import Job
from llava_wire.messages.sampling_params import Grammar

from llava_worker.engine.structured_output.to_lark import GrammarRefused

if TYPE_CHECKING:
    from llava_worker.engine.structured_output.grammar import Grammar as CompiledGrammar
    from llava_worker.engine.structured_output.grammar_cache import Grammars

__all__ = ["NotCompiled", "compiled"]

logger = logging.getLogger(__name__)


class NotCompiled(Exception):
    """``error`` is what the job ends with."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


async def compiled(grammars: Grammars | None, grammar: Grammar, job: Job) -> CompiledGrammar:
    """In a thread; ``grammars`` is None for a model that answers freely only. Raises NotCompiled."""
    try:
        if grammars is None:
            raise GrammarRefused(f"model {job.model!r} answers freely only")
        return await asyncio.to_thread(grammars.compile, grammar.kind, grammar.text)
    except GrammarRefused as refused:
        field = "tools" if grammar.kind == "tools" else "response_format"
        message = refused.sentence(grammar.kind)
        raise NotCompiled(JobError(code=ErrorCode.INVALID_REQUEST, message=message, param=field)) from refused
    except Exception as error:  # whatever it is, the job must end
        logger.exception("job_id=%s: its grammar cannot be compiled", job.job_id)
        message = "the grammar could not be compiled"
        raise NotCompiled(JobError(code=ErrorCode.INTERNAL_ERROR, message=message)) from error
