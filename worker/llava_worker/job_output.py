"""One job being answered: tokens from the engine in, the next event for the queue out.

Tokens that come while an event is on its way gather here and leave together in the next one.
"""

from __future__ import annotations

import logging
import time

import msgspec
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import (
    ErrorCode,
    Event,
    Final,
    FinishReason,
    JobError,
    TokenLogprob,
    TokenScore,
)
from llava_wire.messages.sampling_params import SamplingParams

from llava_worker.engine import Sampling, Sequence, StepOutput, TokenLogprobs
from llava_worker.engine.core.sequence import Pixels
from llava_worker.engine_thread import News, Refusal
from llava_worker.language.detokenizer import Detokenizer
from llava_worker.language.prompt_builder import Prompt, PromptRefused
from llava_worker.language.tokenizer import TextTokenizer

__all__ = ["Answer", "make_sequence"]

logger = logging.getLogger(__name__)


class Answer:
    """Begins where the assignment's log ends. After ``is_finished`` it takes no more tokens.

    ``stop`` are the texts that end a turn in the model's language, beside those that the job names.
    """

    def __init__(
        self, assignment: Assignment, tokenizer: TextTokenizer, *, stop: tuple[str, ...] = ()
    ) -> None:
        self.assignment = assignment
        self.num_prompt_tokens = 0
        self._tokenizer = tokenizer
        self._detokenizer = _detokenizer(assignment, tokenizer, stop)
        self._stop_token_ids = frozenset(assignment.job.sampling.stop_token_ids)
        self._offset = len(assignment.token_ids)
        self._is_begun = False  # an event has left
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._echo: list[int] = []  # the prompt, as long as it is to be told
        self._echo_logprobs: tuple[TokenLogprobs, ...] = ()
        self._text = self._catch_up()
        self._final: Final | None = None
        self._is_told = False  # the end has left in an event
        if self._detokenizer.is_stopped:  # the log is complete but for its end
            self._end(FinishReason.STOP)

    @property
    def is_finished(self) -> bool:
        return self._final is not None

    def begin(self, prompt: Prompt) -> None:
        """The prompt is known. Where it is all that was asked for, the answer is finished."""
        self.num_prompt_tokens = len(prompt.token_ids)
        task = self.assignment.job.task
        if task == "tokenize":
            self._token_ids = prompt.token_ids
        elif task == "detokenize":
            self._text = "".join(self._push(token_id) for token_id in prompt.token_ids)
            self._text += self._detokenizer.flush()
        if self.assignment.job.is_echoed and not self.assignment.token_ids:
            self._echo = prompt.token_ids  # whoever wrote the log's first token has told it
        if not self.assignment.job.is_computed:
            self._end(FinishReason.STOP)

    def take(self, news: News) -> None:
        """The next thing that the engine said about this job."""
        if self.is_finished:
            return
        if isinstance(news, Refusal):
            self.fail(JobError(code=ErrorCode(news.code), message=news.message, param=news.param))
        elif news.error is not None:
            self.fail(JobError(code=ErrorCode(news.error_code), message=news.error))
        else:
            self._take_output(news)

    def fail(self, error: JobError) -> None:
        """End here. What was computed before stays part of the answer."""
        self._final = Final(reason=FinishReason.ERROR, num_prompt_tokens=self.num_prompt_tokens, error=error)

    def let_go(self) -> None:
        """It leaves this worker, finished or not."""

    def next_event(self) -> Event | None:
        """What has gathered since the last call, or None. Text without a token waits for one: an event
        without either token or end would share its offset with the next."""
        if self._is_told or not (self._token_ids or self._final):
            return None
        self._is_told = self._final is not None
        event = Event(
            offset=self._offset,
            token_ids=tuple(self._token_ids),
            text=self._text,
            final=self._final,
            logprobs=tuple(self._logprobs),
            num_prompt_tokens=0 if self._is_begun else self.num_prompt_tokens,
            prompt=self._take_echo(),
        )
        self._is_begun = True
        self._offset = event.next_offset
        self._token_ids, self._text, self._logprobs = [], "", []
        return event

    def _take_echo(self) -> tuple[TokenLogprob, ...]:
        """The prompt's tokens, the first time; none where the answer failed before its first token."""
        token_ids, self._echo = self._echo, []
        if not token_ids or (self._final is not None and self._final.error is not None):
            return ()
        none = TokenLogprobs(0.0)
        logprobs = (none, *(self._echo_logprobs or [none] * (len(token_ids) - 1)))
        told = [self._told(*each) for each in zip(token_ids, logprobs, strict=True)]
        return tuple(_without_leading_space(told) if self._tokenizer.strips_leading_space else told)

    def _take_output(self, output: StepOutput) -> None:
        self._echo_logprobs = self._echo_logprobs or output.prompt_logprobs
        if output.token_id is not None:
            self._token_ids.append(output.token_id)
            self._text += self._push(output.token_id)
            if output.logprobs is not None:
                self._logprobs.append(self._told(output.token_id, output.logprobs))
        if self._detokenizer.is_stopped:
            self._end(FinishReason.STOP, output.num_cached_tokens)
        elif output.finish is not None:
            self._text += self._detokenizer.flush()
            self._end(FinishReason(output.finish), output.num_cached_tokens, output.vector)

    def _push(self, token_id: int) -> str:
        """The text that this token makes certain. A stop token ends the answer and has none."""
        return "" if token_id in self._stop_token_ids else self._detokenizer.push(token_id)

    def _told(self, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
        """Log-probabilities with what the tokens mean, which only this side knows."""

        def score(token_id: int, logprob: float) -> TokenScore:
            return TokenScore(token_id, self._tokenizer.token_bytes(token_id), logprob)

        return TokenLogprob(
            score(token_id, logprobs.logprob), tuple(score(*alternative) for alternative in logprobs.top)
        )

    def _end(self, reason: FinishReason, num_cached_tokens: int = 0, vector: bytes = b"") -> None:
        stopped_by = self._detokenizer.stopped_by
        self._final = Final(
            reason=reason,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
            stopped_by=stopped_by if stopped_by in self.assignment.job.sampling.stop else "",
            vector=vector,
        )

    def _catch_up(self) -> str:
        """Bring the detokenizer to the end of the log; what it knows beyond the logged text."""
        text = "".join(self._push(token_id) for token_id in self.assignment.token_ids)
        if text.startswith(self.assignment.text):
            return text[len(self.assignment.text) :]
        # Only another version of this program could have written it. What was sent cannot be unsent.
        logger.warning("job_id=%s: the logged text is not that of its tokens", self.assignment.job.job_id)
        return ""


def _detokenizer(assignment: Assignment, tokenizer: TextTokenizer, stop: tuple[str, ...]) -> Detokenizer:
    """The template's stop texts are for its answers alone; a text of tokens is taken as it is."""
    job = assignment.job
    if job.task == "detokenize":
        return Detokenizer(tokenizer)
    if job.form == "raw":
        return Detokenizer(tokenizer, job.sampling.stop, is_continued=True)
    return Detokenizer(tokenizer, stop + job.sampling.stop, is_continued=job.form == "continued")


def _without_leading_space(tokens: list[TokenLogprob]) -> list[TokenLogprob]:
    """That of the first token with text is none of the prompt's."""
    for index, token in enumerate(tokens):
        if token.chosen.text:
            bare = msgspec.structs.replace(token.chosen, text=token.chosen.text.removeprefix(b" "))
            tokens[index] = msgspec.structs.replace(token, chosen=bare)
            break
    return tokens


def make_sequence(assignment: Assignment, prompt: Prompt, *, context_length: int) -> Sequence:
    """The engine's form of a job. Raises PromptRefused if the pixels are not what the job says."""
    job = assignment.job
    room = context_length - len(prompt.token_ids)
    max_tokens = job.sampling.max_tokens
    return Sequence(
        seq_id=assignment.assignment_id,
        prompt_ids=prompt.token_ids,
        images=prompt.images,
        pixels=_pixels(assignment, prompt),
        sampling=_sampling(job.sampling),
        max_new_tokens=room if max_tokens is None else min(max_tokens, room),
        output_ids=list(assignment.token_ids),
        cache_scope="public" if job.cache_scope == "public" else f"tenant {job.tenant}",
        is_embedding=job.task == "embed",
        has_prompt_logprobs=job.is_echoed and job.sampling.num_logprobs is not None,
        deadline_s=None if assignment.left_s is None else time.monotonic() + assignment.left_s,
    )


def _sampling(params: SamplingParams) -> Sampling:
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed,
        ignore_eos=params.ignore_eos,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        min_tokens=params.min_tokens,
        stop_token_ids=params.stop_token_ids,
        num_logprobs=params.num_logprobs,
    )


def _pixels(assignment: Assignment, prompt: Prompt) -> list[Pixels]:
    pixels: list[Pixels] = []
    images = {image.digest: image for image in assignment.job.images}
    for span in prompt.images:
        image = images[span.digest]
        tiles = assignment.pixels.get(image.digest, b"")
        expected = image.num_tiles * image.side * image.side * 3
        if len(tiles) != expected:
            raise PromptRefused(
                ErrorCode.INTERNAL_ERROR,
                f"a picture came with {len(tiles)} bytes of pixels instead of {expected}",
            )
        pixels.append(tiles)
    return pixels
