"""Jobs: requests submitted by the server and run by workers.

A job is built from a validated request and never changes. It contains neither pixels nor encoded image files:
each image is an ``ImageRef``, which refers to preprocessed tiles that are stored separately.
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

# Version 2 added `Job.is_echoed`. Version 3 added the grammar kind "gbnf" and the response format in "tools".
WIRE_VERSION = 3

Role = Literal["system", "user", "assistant"]
CacheScope = Literal["tenant", "public"]
PromptForm = Literal["chat", "continued", "raw"]
Task = Literal["answer", "tokenize", "detokenize", "embed"]


class ImageRef(msgspec.Struct, frozen=True, kw_only=True):
    """A reference to an image that was preprocessed according to the model's ImageSpec.

    The tiles are stored under ``digest``, one after another, as uint8 RGB values in row-major HWC order
    (``num_tiles * side * side * 3`` bytes). ``width`` and ``height`` are the dimensions of the original image
    in pixels, in upright orientation. Anyres models need them to remove the padding.
    """

    digest: str
    num_tiles: int
    side: int
    width: int
    height: int


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation. ``parts`` contains its text and images in their original order."""

    role: Role
    parts: tuple[str | ImageRef, ...]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request with all the data that a worker needs to run it.

    - ``task``: "answer" generates text. "embed" returns the embedding of a raw prompt or of one image.
      "tokenize" returns the token IDs of the prompt, and "detokenize" returns the text of ``prompt_ids``.
      All tasks except "answer" emit exactly one event.
    - ``form``: "chat" applies the model's chat template to the messages. "continued" does the same, but the
      output continues the last message. "raw" uses the text of the only message as the prompt.
    - ``prompt_ids``: the prompt as token IDs, used instead of ``messages``.
    - ``cost``: estimated number of tokens (prompt, images and expected output), used for fair queueing.
    - ``ttl_s``: time in seconds from submission to the deadline, including the time spent in the queue.
    - ``priority``: jobs with a higher priority are scheduled first.
    - ``cache_scope``: "tenant" shares cached prefixes with other jobs of the same tenant, "public" with all
      other public jobs.
    - ``version``: the minimum WIRE_VERSION that a worker needs to run the job. Older workers can still run
      other jobs. Adding a field that older workers can ignore does not require a new version.
    - ``is_background``: the job runs to completion even if it has no reader or its controller exits.
    - ``note``: data that the server needs later to build the response; opaque to workers.
    - ``is_echoed``: the first event also contains the prompt tokens. This requires a raw prompt without
      images, and ``max_tokens`` may be 0.
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
        """Return the job without its prompt. The server uses this outline to build the response later."""
        return msgspec.structs.replace(self, messages=(), prompt_ids=())

    @property
    def needs_model(self) -> bool:
        """Return whether the task needs the model; other tasks need only the tokenizer."""
        return self.task in ("answer", "embed")

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Return all images of the conversation in order."""
        return tuple(
            part for message in self.messages for part in message.parts if isinstance(part, ImageRef)
        )
