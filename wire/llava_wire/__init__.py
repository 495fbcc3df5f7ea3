"""The contract between controllers and workers, and the only code that speaks Redis.

A controller submits a ``Job`` through ``JobProducer`` and follows ``Event``s; a worker pulls ``Assignment``s
through ``JobConsumer`` and emits them. ``keys`` lists the keys, ``scripts/*.lua`` hold the protocol: each
move of a job is one atomic script that may be sent twice. A random assignment id fences each writer; the log
in Redis is the checkpoint that workers and controllers continue from; what a client has seen wins over it.
"""

from __future__ import annotations

from llava_wire.assignment import Assignment
from llava_wire.batch_store import (
    Batch,
    BatchIssue,
    BatchOrder,
    BatchStats,
    BatchStore,
    DrivenBatch,
    Recorded,
)
from llava_wire.consumer import JobConsumer
from llava_wire.errors import (
    AlreadySubmitted,
    DuplicateJob,
    QueueFull,
    QueueUnavailable,
    StoreFull,
    TenantOverLimit,
    WireError,
)
from llava_wire.event import ErrorCode, Event, Final, FinishReason, JobError, TokenLogprob, TokenScore
from llava_wire.file_store import FileLimits, FileStore, StoredFile
from llava_wire.heartbeat import Heartbeat, ImageSpec
from llava_wire.inspector import DeadLetter, Fleet, Inspector, Room, WorkerView
from llava_wire.job import (
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
from llava_wire.keyring import ApiKey, KeyLimits, KeyRing
from llava_wire.orders import Instruction, Order, OrderDesk, OrderReport
from llava_wire.producer import JobProducer
from llava_wire.rates import Allowance, RateWindows
from llava_wire.reports import Glimpse, Place, QueueStats
from llava_wire.terms import TenantTerms

__all__ = [
    "WIRE_VERSION",
    "AlreadySubmitted",
    "Allowance",
    "ApiKey",
    "Assignment",
    "Batch",
    "BatchIssue",
    "BatchOrder",
    "BatchStats",
    "BatchStore",
    "DeadLetter",
    "DrivenBatch",
    "DuplicateJob",
    "ErrorCode",
    "Event",
    "FileLimits",
    "FileStore",
    "Final",
    "FinishReason",
    "Fleet",
    "Glimpse",
    "Grammar",
    "GrammarKind",
    "Heartbeat",
    "ImageRef",
    "ImageSpec",
    "Inspector",
    "Instruction",
    "Job",
    "JobConsumer",
    "JobError",
    "JobProducer",
    "KeyLimits",
    "KeyRing",
    "Message",
    "Order",
    "OrderDesk",
    "OrderReport",
    "PromptForm",
    "QueueFull",
    "Place",
    "QueueStats",
    "QueueUnavailable",
    "RateWindows",
    "Recorded",
    "Role",
    "Room",
    "SamplingParams",
    "StoreFull",
    "StoredFile",
    "Task",
    "TenantOverLimit",
    "TenantTerms",
    "TokenLogprob",
    "TokenScore",
    "WireError",
    "WorkerView",
]
