"""A job: one chat request on its way from a controller to a worker.

Built once by the server from a validated request, never changed, read by whichever worker pulls it.
It carries no pixels and no file formats: a picture is an ``ImageRef`` to tiles stored beside the queue.
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
    """A picture already fitted to the model's ImageSpec: uint8 RGB tiles, found under ``digest``.

    The tiles are ``num_tiles * side * side * 3`` bytes, row-major HWC, one after another.
    ``width`` and ``height`` are the upright original's in pixels; anyres models need them to unpad.
    """

    digest: str
    num_tiles: int
    side: int
    width: int
    height: int


class Message(msgspec.Struct, frozen=True):
    """One turn; ``parts`` keeps the order in which the user wrote texts and pictures."""

    role: Role
    parts: tuple[str | ImageRef, ...]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs to answer. ``cost`` is in tokens (prompt estimate + pictures + expected answer);
    ``ttl_s`` bounds the job's whole life, queueing included. Of the jobs in a worker's hands the one with the
    higher ``priority`` goes first. What is computed for a job serves others of its tenant; for one whose
    ``cache_scope`` is "public" it serves all public ones, whoever sent them.

    ``form``: in "chat" the messages go through the model's template; in "continued" too, and the last one is
    an answer to go on with; in "raw" the one message is the prompt as it stands. ``prompt_ids`` are a prompt
    in tokens and take the place of messages. ``version`` is the least that a worker must know to run the job,
    so that an older one runs all others; a field that it may ignore is added without. ``task`` "tokenize"
    asks for no answer but for the prompt's own tokens, "detokenize" for the text of ``prompt_ids``, and
    "embed" for the vector of a raw prompt or of one picture: one event, which is final. ``is_background``: it
    runs to its end although nobody reads it, its controller's death included. ``note`` is the server's own:
    what it must know to write the answer down later. ``is_echoed``: the first event tells the prompt, too,
    which is raw and without pictures; then ``max_tokens`` may be 0.
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
        """The job without what was said: enough to write its answer down, and kept as long as the answer."""
        return msgspec.structs.replace(self, messages=(), prompt_ids=())

    @property
    def is_computed(self) -> bool:
        """Whether the model has a part in it; the tokenizer alone does the others."""
        return self.task in ("answer", "embed")

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Every picture of the conversation, in reading order."""
        return tuple(
            part for message in self.messages for part in message.parts if isinstance(part, ImageRef)
        )
