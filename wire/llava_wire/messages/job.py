"""A job: one request, as the server submits it and a worker runs it.

It is built once from a validated request and never changes. It carries no pixels and no file formats: an
image is an ``ImageRef`` to preprocessed tiles that are stored separately.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llava_wire.messages.sampling_params import SamplingParams

__all__ = [
    "WIRE_VERSION",
    "CacheScope",
    "ImageRef",
    "Job",
    "Message",
    "PromptForm",
    "Role",
    "Task",
]

WIRE_VERSION = 2  # 2: `Job.is_echoed`

Role = Literal["system", "user", "assistant"]
CacheScope = Literal["tenant", "public"]
PromptForm = Literal["chat", "continued", "raw"]
Task = Literal["answer", "tokenize", "detokenize", "embed"]


class ImageRef(msgspec.Struct, frozen=True, kw_only=True):
    """An image, preprocessed according to the model's ImageSpec: uint8 RGB tiles, found by ``digest``.

    The tiles are ``num_tiles * side * side * 3`` bytes, row-major HWC, one after another. ``width`` and
    ``height`` are those of the upright original in pixels; anyres models need them to unpad.
    """

    digest: str
    num_tiles: int
    side: int
    width: int
    height: int


class Message(msgspec.Struct, frozen=True):
    """One turn; ``parts`` are texts and images in the order of the request."""

    role: Role
    parts: tuple[str | ImageRef, ...]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a worker needs to run a request.

    - ``task``: "answer" generates text; "embed" returns the embedding of a raw prompt or of one image;
      "tokenize" returns the token IDs of the prompt and "detokenize" the text of ``prompt_ids``. All but
      "answer" end with one event.
    - ``form``: "chat" applies the model's template to the messages; "continued" too, and the last message is
      an output to be continued; "raw" takes the text of the one message as the prompt.
    - ``prompt_ids``: a prompt in tokens, in place of messages.
    - ``cost``: in tokens (estimated prompt + images + expected output); the unit of fair queueing.
    - ``ttl_s``: seconds from the submission to the deadline, the time in the queue included.
    - ``priority``: of the jobs on a worker, those with a higher one are scheduled first.
    - ``cache_scope``: "tenant": computed prefixes are shared with jobs of the same tenant; "public": with all
      public jobs.
    - ``version``: the lowest WIRE_VERSION of a worker that can run the job, so that older workers run all
      others. A field that an older worker may ignore is added without a new version.
    - ``is_background``: the job runs to its end without a reader, even if its controller exits.
    - ``note``: data of the server, opaque to workers: what it needs to build the response later.
    - ``is_echoed``: the first event has the prompt's tokens too. The prompt is raw and without images;
      ``max_tokens`` may be 0.
    """

    job_id: str
    model: str
    tenant: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    cost: float
    ttl_s: float = 600.0
    priority: int = 0
    cache_scope: CacheScope = "tenant"
    form: PromptForm = "chat"
    prompt_ids: tuple[int, ...] = ()
    task: Task = "answer"
    version: int = 1
    is_background: bool = False
    note: str = ""
    is_echoed: bool = False

    @property
    def outline(self) -> Job:
        """The job without its prompt: enough to build the response, and stored as long as the output."""
        return msgspec.structs.replace(self, messages=(), prompt_ids=())

    @property
    def needs_model(self) -> bool:
        """Whether the task needs the model; the others need only the tokenizer."""
        return self.task in ("answer", "embed")

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Every image of the conversation, in reading order."""
        return tuple(
            part for message in self.messages for part in message.parts if isinstance(part, ImageRef)
        )
