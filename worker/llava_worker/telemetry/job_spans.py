"""OpenTelemetry spans for a job in this worker. Jobs without a trace context have no spans.

    queue             from submission to the first pull; recorded only by the first worker
    chat MODEL        the job in this worker, from the pull until the job ends
      prefill         up to the first token: waiting for the grammar and engine, processing images and prompt
      decode          from the first token to the last

The event ``resumed`` marks a job that was started by another worker. The event ``let go`` marks a job that
left this worker unfinished, because it was cancelled, requeued or no longer assigned to this worker. Spans
never contain text.
"""

from __future__ import annotations

import time
from typing import Any

from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import JobError
from llava_wire.messages.job import Job
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llava_worker.engine import StepOutput
from llava_worker.job_output import JobOutput, JobOutputFactory
from llava_worker.language.prompt_builder import Prompt
from llava_worker.language.tokenizer import Tokenizer

__all__ = ["TracedJobOutput", "traced_job_outputs"]


def traced_job_outputs(tracer: Tracer, *, worker_id: str) -> JobOutputFactory:
    """Return a factory that traces all jobs submitted with a trace context."""

    def create(
        assignment: Assignment, tokenizer: Tokenizer, *, stop: tuple[str, ...], model_digest: str
    ) -> JobOutput:
        if not assignment.trace:
            return JobOutput(assignment, tokenizer, stop=stop, model_digest=model_digest)
        return TracedJobOutput(
            assignment,
            tokenizer,
            stop=stop,
            model_digest=model_digest,
            tracer=tracer,
            worker_id=worker_id,
        )

    return create


def _operation(job: Job) -> str:
    """Return the operation name from OpenTelemetry's semantic conventions, or else the task name."""
    if job.task == "embed":
        return "embeddings"
    if job.task != "answer":
        return job.task
    return "text_completion" if job.form == "raw" else "chat"


class TracedJobOutput(JobOutput):
    """The output state of a traced job. The spans end when the job finishes or the worker drops it."""

    def __init__(
        self,
        assignment: Assignment,
        tokenizer: Tokenizer,
        *,
        stop: tuple[str, ...],
        model_digest: str,
        tracer: Tracer,
        worker_id: str,
    ) -> None:
        super().__init__(assignment, tokenizer, stop=stop, model_digest=model_digest)
        job, pulled_at = assignment.job, time.time_ns()
        self._tracer = tracer
        self._phase_span: Span | None = None
        self._has_token = False
        submitter = TraceContextTextMapPropagator().extract({"traceparent": assignment.trace})
        operation = _operation(job)
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "llava-serve",
            "gen_ai.request.model": job.model,
            "gen_ai.response.id": job.job_id,
            "llava.worker.id": worker_id,
        }
        if assignment.token_ids == () and assignment.remaining_s is not None:
            waited_s = max(job.ttl_s - assignment.remaining_s, 0.0)  # both times use the queue's clock
            queue_span = tracer.start_span(
                "queue", submitter, start_time=pulled_at - int(waited_s * 1e9), attributes=attributes
            )
            queue_span.end(pulled_at)
        self._job_span = tracer.start_span(
            f"{operation} {job.model}", submitter, SpanKind.CONSUMER, attributes, start_time=pulled_at
        )
        if assignment.token_ids:
            self._job_span.add_event("resumed", {"llava.answer.tokens": len(assignment.token_ids)})

    def start(self, prompt: Prompt) -> None:
        super().start(prompt)
        num_tokens = len(prompt.token_ids)
        self._job_span.set_attribute("gen_ai.usage.input_tokens", num_tokens)
        if self.is_finished:
            self._end_spans()
        else:
            self._start_phase(
                "prefill", {"gen_ai.usage.input_tokens": num_tokens, "llava.images": len(prompt.images)}
            )

    def process(self, output: StepOutput) -> None:
        super().process(output)
        if not self._has_token and output.token_id is not None:
            self._has_token = True
            cached = {"gen_ai.usage.cache_read.input_tokens": output.num_cached_tokens}
            self._job_span.set_attributes(cached)
            if self._phase_span is not None:
                self._phase_span.set_attributes(cached)
            self._start_phase("decode", {})
        if self.is_finished:
            self._end_spans()

    def fail(self, error: JobError) -> None:
        super().fail(error)
        # The error message is not recorded, because it may contain parts of the request.
        self._job_span.set_attribute("error.type", error.code.value)
        self._job_span.set_status(StatusCode.ERROR)
        self._end_spans()

    def close(self) -> None:
        if self._job_span.is_recording():
            self._job_span.add_event("let go")
            self._end_spans()

    def _start_phase(self, name: str, attributes: dict[str, Any]) -> None:
        if self._phase_span is not None:
            self._phase_span.end()
        self._phase_span = self._tracer.start_span(
            name, set_span_in_context(self._job_span), attributes=attributes
        )

    def _end_spans(self) -> None:
        """End all open spans. Calling it again has no effect."""
        if not self._job_span.is_recording():
            return
        attributes: dict[str, Any] = {"gen_ai.usage.output_tokens": self._offset + len(self._token_ids)}
        if self._final is not None:
            attributes["gen_ai.response.finish_reasons"] = [self._final.reason.value]
        self._job_span.set_attributes(attributes)
        if self._phase_span is not None:
            if self._has_token:
                self._phase_span.set_attributes(attributes)
            self._phase_span.end()
        self._job_span.end()
