"""Jobs: requests submitted by the server and run by workers.

A job is built from a validated request and never changes. It contains neither pixels nor encoded image files:
each image is an ``ImageRef``, which refers to preprocessed tiles that are stored separately.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llava_wire.messages.sampling_params import SamplingParams

__all__ = [
    "HIGHEST_PRIORITY",
    "LOWEST_PRIORITY",
    "WIRE_VERSION",
    "CacheScope",
    "ImageRef",
    "Job",
    "Message",
    "PromptForm",
    "Role",
    "Task",
]

# The highest version in `Job.required_version`.
WIRE_VERSION = 3

LOWEST_PRIORITY, HIGHEST_PRIORITY = -1, 1

Role = Literal["system", "user", "assistant"]
CacheScope = Literal["tenant", "public"]
PromptForm = Literal["chat", "continued", "raw"]
Task = Literal["answer", "tokenize", "detokenize", "embed"]


class ImageRef(msgspec.Struct, frozen=True, kw_only=True):
    """A reference to an image that was preprocessed according to the model's ImageSpec.

    The tiles are stored under ``digest``, one after another, as uint8 RGB values in row-major HWC order
    (``num_bytes`` bytes). ``width`` and ``height`` are the dimensions of the original image
    in pixels, in upright orientation. Anyres models need them to remove the padding.

    If ``side`` is 0, the image is not split into tiles. Its pixels are RGB values of ``width`` x ``height``
    pixels, and ``num_tiles`` is 1.
    """

    digest: str
    num_tiles: int
    side: int
    width: int
    height: int

    @property
    def num_bytes(self) -> int:
        """The size of the pixel data."""
        num_pixels = self.num_tiles * self.side**2 if self.side else self.width * self.height
        return num_pixels * 3


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
    - ``priority``: jobs with a higher priority are scheduled first. From ``LOWEST_PRIORITY`` to
      ``HIGHEST_PRIORITY``.
    - ``cache_scope``: "tenant" shares cached prefixes with other jobs of the same tenant, "public" with all
      other public jobs.
    - ``version``: the minimum WIRE_VERSION that a worker needs to run the job. Older workers can still run
      other jobs. Adding a field that older workers can ignore does not require a new version.
    - ``is_background``: the job runs to completion even if it has no reader or its controller exits.
    - ``note``: data that the server needs later to build the response; opaque to workers.
    - ``is_echoed``: the first event also contains the prompt tokens. This requires a raw prompt without
      images, and ``max_tokens`` may be 0.
    - ``returns_token_ids``: the response contains the IDs of the prompt and output tokens. The first event
      contains the prompt tokens.
    - ``names_tokens_by_id``: log probabilities refer to tokens by ID instead of by text. Used by the server.
    - ``truncate_prompt_tokens``: maximum number of prompt tokens. Tokens at the start of a longer prompt are
      dropped, except for a beginning-of-sequence token that the worker added. -1 is the number of tokens that
      leaves room for ``max_tokens`` in the context. If it is None, prompts are not truncated.
    - ``cache_salt``: cached data is shared only with jobs that have the same salt and ``cache_scope``.
    - ``is_normalized``: whether the vector of an "embed" job is normalized to unit length.
    - ``context_length``: maximum number of prompt and output tokens, which limits the size of the job's log.
      0 if it is unknown. Used by the server.
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
    returns_token_ids: bool = False
    names_tokens_by_id: bool = False
    truncate_prompt_tokens: int | None = None
    cache_salt: str = ""
    is_normalized: bool = True
    context_length: int = 0

    @property
    def required_version(self) -> int:
        """The version to set, so that no worker ignores a field of the job."""
        is_new = (
            self.returns_token_ids
            or self.truncate_prompt_tokens is not None
            or self.cache_salt
            or not self.is_normalized
            or self.sampling.needs_version_3
        )
        if is_new:
            return 3
        return 2 if self.is_echoed else 1

    @property
    def has_prompt_event(self) -> bool:
        """Whether the first event contains the prompt tokens."""
        return self.is_echoed or self.returns_token_ids or self.sampling.num_prompt_logprobs is not None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The number of alternatives to return for each prompt token, or None for no log probabilities."""
        echoed = self.sampling.num_logprobs if self.is_echoed else None
        requested = [number for number in (echoed, self.sampling.num_prompt_logprobs) if number is not None]
        return max(requested, default=None)

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
