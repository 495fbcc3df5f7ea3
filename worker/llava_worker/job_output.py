"""The output state of a job, which converts tokens from the engine into events for the queue.

Tokens that arrive while an event is being sent are collected and sent in the next event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Protocol

from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import (
    Event,
    Final,
    FinishReason,
    JobError,
    TokenLogprob,
    TokenScore,
)

from llava_worker.engine import StepOutput, TokenLogprobs
from llava_worker.language.detokenizer import Detokenizer
from llava_worker.language.prompt_builder import Prompt
from llava_worker.language.tokenizer import Tokenizer

__all__ = ["JobOutput", "JobOutputFactory"]

logger = logging.getLogger(__name__)


class JobOutputFactory(Protocol):
    """A function that creates the output state of a job: JobOutput, or a wrapper that adds tracing."""

    def __call__(
        self, assignment: Assignment, tokenizer: Tokenizer, *, stop: tuple[str, ...], model_digest: str
    ) -> JobOutput: ...


class JobOutput:
    """The output state of one job, which continues where the assignment's event log ends.

    Once ``is_finished`` is True, engine outputs are ignored. ``stop`` contains the template's stop strings,
    which apply in addition to the job's. ``model_digest`` is the digest in the worker's heartbeat.
    """

    def __init__(
        self,
        assignment: Assignment,
        tokenizer: Tokenizer,
        *,
        stop: tuple[str, ...] = (),
        model_digest: str = "",
    ) -> None:
        self.assignment = assignment
        self._model_digest = model_digest
        self.num_prompt_tokens = 0
        self._tokenizer = tokenizer
        self._detokenizer = _create_detokenizer(assignment, tokenizer, stop)
        sampling = assignment.job.sampling
        self._hidden_ids = frozenset(() if sampling.include_stop_str_in_output else sampling.stop_token_ids)
        self._hides_end = not sampling.include_stop_str_in_output
        self._offset = len(assignment.token_ids)
        self._has_event = False  # whether next_event has returned an event
        self._token_ids: list[int] = []  # this and the three attributes below are sent in the next event
        self._logprobs: list[TokenLogprob] = []
        self._prompt = Prompt()  # the prompt to send in the next event
        self._echo_logprobs: Collection[TokenLogprobs] = ()
        self._echo: tuple[TokenLogprob, ...] = ()
        self._text = self._replay_log()
        self._final: Final | None = None
        self._has_final_event = False
        if self._detokenizer.is_stopped:  # the log contains all tokens, but lacks the final event
            self._finish(FinishReason.STOP)

    @property
    def is_finished(self) -> bool:
        return self._final is not None

    @property
    def num_pending_tokens(self) -> int:
        """The number of prompt tokens, until the engine has generated the first token."""
        return 0 if self._has_event or self._token_ids else self.num_prompt_tokens

    @property
    def is_urgent(self) -> bool:
        """Whether the next event is the first or the last one."""
        return self.is_finished or not self._has_event

    def start(self, prompt: Prompt) -> None:
        """Record the prompt, and finish the job if it does not require a forward pass."""
        self.num_prompt_tokens = len(prompt.token_ids)
        job = self.assignment.job
        if job.task == "tokenize":
            self._token_ids = prompt.token_ids
        elif job.task == "detokenize":
            self._text = prompt.text
        if job.has_prompt_event and not self.assignment.token_ids:
            self._prompt = prompt  # otherwise, the log's first event contains the prompt
        if not job.needs_model:
            self._finish(FinishReason.STOP)

    def process(self, output: StepOutput) -> None:
        """Process the engine's next output for this job."""
        if self.is_finished:
            return
        if output.error is not None:
            self.fail(output.error)
        else:
            self._process_step(output)

    def fail(self, error: JobError) -> None:
        """Finish the job with an error. Tokens generated before the error are still sent."""
        self._final = Final(reason=FinishReason.ERROR, num_prompt_tokens=self.num_prompt_tokens, error=error)

    def close(self) -> None:
        """Release resources. Called when the worker drops the job, whether or not it has finished."""

    def next_event(self) -> Event | None:
        """Return an event with all output since the last call, or None if there is no new output.

        Text without a token is held back until the next token, because an event that contains neither a token
        nor the end of the job would have the same offset as the next event.
        """
        if self._has_final_event or not (self._token_ids or self._final):
            return None
        self.build_echo()
        event = Event(
            offset=self._offset,
            token_ids=tuple(self._token_ids),
            text=self._text,
            final=self._final,
            logprobs=tuple(self._logprobs),
            num_prompt_tokens=0 if self._has_event else self.num_prompt_tokens,
            prompt=self._echo,
            model_digest="" if self._has_event else self._model_digest,
        )
        self._has_event = True
        self._has_final_event = self._final is not None
        self._offset = event.next_offset
        self._token_ids, self._text, self._logprobs, self._echo = [], "", [], ()
        return event

    @property
    def has_unbuilt_echo(self) -> bool:
        """Whether the next event contains the prompt's tokens and `build_echo` has not been called."""
        has_error = self._final is not None and self._final.error is not None
        return bool(self._prompt.token_ids and (self._token_ids or self._final)) and not has_error

    def build_echo(self) -> None:
        """Build the prompt's tokens for the next event. Has no effect unless ``has_unbuilt_echo`` is true.

        For a long prompt with many alternatives, this takes a second, so the worker calls it in a thread. In
        the meantime, engine outputs may be processed, but no other method may be called.
        """
        if not self.has_unbuilt_echo:
            return
        prompt = self._prompt
        token_ids = prompt.token_ids
        none = TokenLogprobs(0.0)
        logprobs = [none, *(self._echo_logprobs or [none] * (len(token_ids) - 1))]
        for image in prompt.images:  # the probabilities of the placeholder tokens are meaningless
            logprobs[image.start : image.end] = [none] * image.length
        strips_space, tokens = self._tokenizer.strips_leading_space, []
        text_of = self._tokenizer.token_bytes
        for token_id, scores in zip(token_ids, logprobs, strict=True):
            tokens.append(self._with_text(token_id, scores, text_of, strips_space=strips_space))
            strips_space = strips_space and not text_of(token_id)
        self._echo, self._prompt = tuple(tokens), Prompt()

    def _process_step(self, output: StepOutput) -> None:
        self._echo_logprobs = self._echo_logprobs or output.prompt_logprobs
        if output.token_id is not None:
            is_end = output.finish == "stop"
            self._token_ids.append(output.token_id)
            if output.logprobs is not None:
                self._logprobs.append(self._output_logprob(output.token_id, output.logprobs, is_end=is_end))
            self._text += self._push(output.token_id, is_end=is_end)
        if self._detokenizer.is_stopped:
            self._finish(FinishReason.STOP, output.num_cached_tokens)
        elif output.finish is not None:
            self._text += self._detokenizer.flush()
            self._finish(FinishReason(output.finish), output.num_cached_tokens, output.vector)

    def _push(self, token_id: int, *, is_end: bool = False) -> str:
        """Return the text completed by this token."""
        return "" if self._is_hidden(token_id, is_end=is_end) else self._detokenizer.push(token_id)

    def _is_hidden(self, token_id: int, *, is_end: bool) -> bool:
        """Return whether the token has no text because it ends the output.

        ``is_end`` is false when a log is replayed. This makes no difference, because the event that contains
        an end-of-sequence token also contains the end of the job.
        """
        return token_id in self._hidden_ids or (is_end and self._hides_end)

    def _output_logprob(self, token_id: int, logprobs: TokenLogprobs, *, is_end: bool) -> TokenLogprob:
        """Return the log probabilities of the next output token."""
        detokenizer = self._detokenizer
        token = self._with_text(
            token_id, logprobs, detokenizer.token_bytes, strips_space=detokenizer.strips_next_space
        )
        if not self._is_hidden(token_id, is_end=is_end):
            return token
        return TokenLogprob(TokenScore(token_id, b"", logprobs.logprob, token.sampled.name), token.top)

    def _with_text(
        self, token_id: int, logprobs: TokenLogprobs, text_of: Callable[[int], bytes], *, strips_space: bool
    ) -> TokenLogprob:
        """Combine the log probabilities with the tokens' texts and names, which are unknown to the engine.

        ``strips_space`` applies to the alternatives too, so that all texts can be compared.
        """

        def score(token_id: int, logprob: float) -> TokenScore:
            text = text_of(token_id)
            name = "" if self._tokenizer.token_bytes(token_id) else self._tokenizer.special_name(token_id)
            return TokenScore(token_id, text.removeprefix(b" ") if strips_space else text, logprob, name)

        top = tuple(score(*alternative) for alternative in logprobs.top)
        return TokenLogprob(score(token_id, logprobs.logprob), top, logprobs.rank)

    def _finish(self, reason: FinishReason, num_cached_tokens: int = 0, vector: bytes = b"") -> None:
        stopped_by = self._detokenizer.stopped_by
        self._final = Final(
            reason=reason,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
            stopped_by=stopped_by if stopped_by in self.assignment.job.sampling.stop else "",
            vector=vector,
        )

    def _replay_log(self) -> str:
        """Feed the logged tokens to the detokenizer. Return any text that is missing from the log."""
        text = "".join(self._push(token_id) for token_id in self.assignment.token_ids)
        if text.startswith(self.assignment.text):
            return text[len(self.assignment.text) :]
        # The log was written by a different version of this program. Text that has already been sent cannot
        # change.
        logger.warning("job_id=%s: the logged text does not match its tokens", self.assignment.job.job_id)
        return ""


def _create_detokenizer(assignment: Assignment, tokenizer: Tokenizer, stop: tuple[str, ...]) -> Detokenizer:
    """Return the job's detokenizer.

    The template's stop strings apply only to chat responses.
    """
    job = assignment.job
    sampling = job.sampling
    return Detokenizer(
        tokenizer,
        sampling.stop if job.form == "raw" else stop + sampling.stop,
        included_stop=sampling.stop if sampling.include_stop_str_in_output else (),
        has_special_tokens=not sampling.skip_special_tokens,
        is_continued=job.form in ("raw", "continued"),
    )
