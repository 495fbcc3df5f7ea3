"""The contract between controllers and workers, and the only code that speaks Redis.

A controller submits a ``Job`` through ``JobProducer`` and follows ``Event``s; a worker pulls ``Assignment``s
through ``JobConsumer`` and emits them. ``keys`` lists the keys, ``scripts/*.lua`` hold the protocol: each
move of a job is one atomic script that may be sent twice. A random assignment id fences each writer; the log
in Redis is the checkpoint that workers and controllers continue from; what a client has seen wins over it.
"""

from __future__ import annotations

from llava_wire.controller_side.producer import JobProducer
from llava_wire.controller_side.queue_status import JobSnapshot, QueuePosition, QueueStats
from llava_wire.controller_side.terms import TenantLimits
from llava_wire.errors import (
    AlreadySubmitted,
    DuplicateJob,
    QueueFull,
    QueueUnavailable,
    StoreFull,
    TenantOverLimit,
    WireError,
)
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
from llava_wire.messages.heartbeat import Heartbeat, ImageSpec
from llava_wire.messages.job import (
    WIRE_VERSION,
    Grammar,
    GrammarKind,
    ImageRef,
    Job,
    Message,
    PromptForm,
    Role,
    SamplingParams,
    Task,
)
from llava_wire.operator.inspector import DeadLetter, Fleet, Inspector, QueueDepth, WorkerView
from llava_wire.operator.worker_commands import CommandSender, CommandStatus, IssuedCommand, ModelCommand
from llava_wire.stores.api_keys import ApiKey, ApiKeyStore, KeyLimits
from llava_wire.stores.batches import (
    Batch,
    BatchIssue,
    BatchSpec,
    BatchStats,
    BatchStore,
    ClaimedBatch,
    RecordedResults,
)
from llava_wire.stores.files import FileLimits, FileStore, StoredFile
from llava_wire.stores.rate_limits import Allowance, RateLimitStore
from llava_wire.worker_side.consumer import JobConsumer

__all__ = [
    "WIRE_VERSION",
    "AlreadySubmitted",
    "Allowance",
    "ApiKey",
    "Assignment",
    "Batch",
    "BatchIssue",
    "BatchSpec",
    "BatchStats",
    "BatchStore",
    "DeadLetter",
    "ClaimedBatch",
    "DuplicateJob",
    "ErrorCode",
    "Event",
    "FileLimits",
    "FileStore",
    "Final",
    "FinishReason",
    "Fleet",
    "JobSnapshot",
    "Grammar",
    "GrammarKind",
    "Heartbeat",
    "ImageRef",
    "ImageSpec",
    "Inspector",
    "ModelCommand",
    "Job",
    "JobConsumer",
    "JobError",
    "JobProducer",
    "KeyLimits",
    "ApiKeyStore",
    "Message",
    "IssuedCommand",
    "CommandSender",
    "CommandStatus",
    "PromptForm",
    "QueueFull",
    "QueuePosition",
    "QueueStats",
    "QueueUnavailable",
    "RateLimitStore",
    "RecordedResults",
    "Role",
    "QueueDepth",
    "SamplingParams",
    "StoreFull",
    "StoredFile",
    "Task",
    "TenantOverLimit",
    "TenantLimits",
    "TokenLogprob",
    "TokenScore",
    "WireError",
    "WorkerView",
]
