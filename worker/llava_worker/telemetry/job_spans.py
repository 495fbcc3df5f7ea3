"""An answer that tells OpenTelemetry how it was made; without tracing there is none of this.

    queue             from its submission until a worker took it; not told again where it was taken up later
    chat MODEL        in this worker, from pull to end
      prefill         until the first token: waiting in the engine and for a grammar, pictures, prompt
      decode          from the first token to the last

Event ``resumed``: the answer goes on where another worker left it. Event ``let go``: it left this worker
unfinished, because it was cancelled, taken back or handed on. Nothing tells what was said.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import JobError
from llava_wire.messages.job import Job
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llava_worker.engine_thread import News, Refusal
from llava_worker.job_output import Answer
from llava_worker.language.prompt_builder import Prompt
from llava_worker.language.tokenizer import TextTokenizer

__all__ = ["TracedAnswer", "answers_traced"]


def answers_traced(tracer: Tracer, *, worker_id: str) -> Callable[..., Answer]:
    """Makes answers: traced ones for the jobs whose submitter traces, plain ones for the others."""

    def make(assignment: Assignment, tokenizer: TextTokenizer, *, stop: tuple[str, ...]) -> Answer:
        if not assignment.trace:
            return Answer(assignment, tokenizer, stop=stop)
        return TracedAnswer(assignment, tokenizer, stop=stop, tracer=tracer, worker_id=worker_id)

    return make


def _operation(job: Job) -> str:
    """In the words of OpenTelemetry's conventions where they have one."""
    if job.task == "embed":
        return "embeddings"
    if job.task != "answer":
        return job.task
    return "text_completion" if job.form == "raw" else "chat"


class TracedAnswer(Answer):
    """Spans end with the answer, or when the worker lets go of it."""

    def __init__(
        self,
        assignment: Assignment,
        tokenizer: TextTokenizer,
        *,
        stop: tuple[str, ...],
        tracer: Tracer,
        worker_id: str,
    ) -> None:
        super().__init__(assignment, tokenizer, stop=stop)
        job, taken_at = assignment.job, time.time_ns()
        self._tracer = tracer
        self._stage: Span | None = None
        self._has_token = False
        submitter = TraceContextTextMapPropagator().extract({"traceparent": assignment.trace})
        operation = _operation(job)
        told = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "llava-serve",
            "gen_ai.request.model": job.model,
            "gen_ai.response.id": job.job_id,
            "llava.worker.id": worker_id,
        }
        if assignment.token_ids == () and assignment.left_s is not None:
            waited_s = max(job.ttl_s - assignment.left_s, 0.0)  # both by the queue's clock
            waiting = tracer.start_span(
                "queue", submitter, start_time=taken_at - int(waited_s * 1e9), attributes=told
            )
            waiting.end(taken_at)
        self._whole = tracer.start_span(
            f"{operation} {job.model}", submitter, SpanKind.CONSUMER, told, start_time=taken_at
        )
        if assignment.token_ids:
            self._whole.add_event("resumed", {"llava.answer.tokens": len(assignment.token_ids)})

    def begin(self, prompt: Prompt) -> None:
        super().begin(prompt)
        self._whole.set_attribute("gen_ai.usage.input_tokens", len(prompt.token_ids))
        if self.is_finished:
            self._close()
            return
        pictures = len(prompt.images)
        self._enter(
            "prefill", {"gen_ai.usage.input_tokens": len(prompt.token_ids), "llava.pictures": pictures}
        )

    def take(self, news: News) -> None:
        super().take(news)
        if not self._has_token and not isinstance(news, Refusal) and news.token_id is not None:
            self._has_token = True
            cached = {"gen_ai.usage.cache_read.input_tokens": news.num_cached_tokens}
            self._whole.set_attributes(cached)
            if self._stage is not None:
                self._stage.set_attributes(cached)
            self._enter("decode", {})
        if self.is_finished:
            self._close()

    def fail(self, error: JobError) -> None:
        super().fail(error)
        self._whole.set_attribute("error.type", error.code.value)  # its sentence may quote the request
        self._whole.set_status(StatusCode.ERROR)
        self._close()

    def let_go(self) -> None:
        if self._whole.is_recording():
            self._whole.add_event("let go")
            self._close()

    def _enter(self, stage: str, told: dict[str, Any]) -> None:
        if self._stage is not None:
            self._stage.end()
        self._stage = self._tracer.start_span(stage, set_span_in_context(self._whole), attributes=told)

    def _close(self) -> None:
        """Does nothing the second time."""
        if not self._whole.is_recording():
            return
        told: dict[str, Any] = {"gen_ai.usage.output_tokens": self._offset + len(self._token_ids)}
        if self._final is not None:
            told["gen_ai.response.finish_reasons"] = [self._final.reason.value]
        self._whole.set_attributes(told)
        if self._stage is not None:
            if self._has_token:
                self._stage.set_attributes(told)
            self._stage.end()
        self._whole.end()
