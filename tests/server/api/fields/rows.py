"""Rows that describe the effects of request fields, and helpers to test them.

A row's key is "Model.field", as named in the OpenAPI document. A row contains a request body and the location
of the field in that body. Tests compare the entire outcome of a request: the response, and the jobs that the
worker received.
"""

from __future__ import annotations

import copy
import re
from typing import Any, NamedTuple

import httpx2
import msgspec
from llava_server.api.fields.unsupported import Unsupported
from llava_wire.messages.job import Job
from pydantic import BaseModel

from tests.server.conftest import Stack
from tests.server.openapi_document import REQUEST_SCHEMAS, SCHEMAS, alternatives

__all__ = [
    "ABSENT",
    "Differs",
    "Hint",
    "Only",
    "Row",
    "CoveredElsewhere",
    "Ignored",
    "RowBuilder",
    "changed",
    "outcome",
    "owners",
    "unsupported_fields",
]

ABSENT = "(absent)"
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
# IDs, timestamps and durations
_VOLATILE = re.compile(r"[0-9a-f]{16,}|\b1[0-9]{9}(\.\d+)?\b|\d{4}-\d\d-\d\dT[\d:.]+Z|\"\w+_duration\":\d+")


class Differs(NamedTuple):
    """A field for which each value leads to a different outcome."""

    path: str
    body: dict[str, Any]
    location: str
    values: tuple[Any, ...]


class Hint(NamedTuple):
    """A field that has no effect but is validated: ``accepted`` is valid and ``rejected`` is an error."""

    path: str
    body: dict[str, Any]
    location: str
    accepted: Any
    rejected: Any


class Ignored(NamedTuple):
    """A field that has no effect and accepts any value."""

    path: str
    body: dict[str, Any]
    location: str
    accepted: Any


class Only(NamedTuple):
    """A field that accepts only the value in ``body``.

    Other values cause an error for ``param`` or, if it is empty, for ``location``.
    """

    path: str
    body: dict[str, Any]
    location: str
    rejected: Any
    param: str = ""


class CoveredElsewhere(NamedTuple):
    """A field covered by another test. ``test`` has the form file::name."""

    test: str


Row = Differs | Hint | Ignored | Only | CoveredElsewhere


class RowBuilder(NamedTuple):
    """Builds the rows for a route. ``body`` is the default request body."""

    path: str
    body: dict[str, Any]

    def differs(self, location: str, *values: Any) -> Differs:
        return Differs(self.path, self.body, location, values)

    def hint(self, location: str, accepted: Any, rejected: Any, body: dict[str, Any] | None = None) -> Hint:
        return Hint(self.path, self.body if body is None else body, location, accepted, rejected)

    def only(
        self, location: str, rejected: Any = "nonsense", body: dict[str, Any] | None = None, param: str = ""
    ) -> Only:
        return Only(self.path, self.body if body is None else body, location, rejected, param)


def unsupported_fields(model: type[BaseModel]) -> dict[str, Unsupported]:
    """Return the unsupported fields of a request model."""
    return {
        name: mark
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Unsupported)
    }


def steps(location: str) -> list[str | int]:
    return [name or int(number) for name, number in _STEP.findall(location)]


def changed(body: dict[str, Any], location: str, value: Any) -> dict[str, Any]:
    """Return a copy of the body with ``value`` at ``location``."""
    body = inner = copy.deepcopy(body)
    *before, last = steps(location)
    for step in before:
        inner = inner[step]  # type: ignore[index]
    if value == ABSENT:
        inner.pop(last, None)  # type: ignore[arg-type]
    else:
        inner[last] = value  # type: ignore[index]
    return body


def owners(path: str, location: str) -> set[str]:
    """Return the names of the models in the document that define the field at this location in a request."""
    *before, last = steps(location)
    schemas = alternatives(REQUEST_SCHEMAS[path])
    for step in before:
        schemas = [
            branch
            for schema in schemas
            for branch in alternatives(schema.get("items" if isinstance(step, int) else "properties", {}))
            if isinstance(step, int)
        ] or [
            branch
            for schema in schemas
            if step in schema.get("properties", {})
            for branch in alternatives(schema["properties"][step])
        ]
    found = [schema for schema in schemas if last in schema.get("properties", {})]
    return {name for name, schema in SCHEMAS.items() if any(schema is each for each in found)}


def outcome(stack: Stack, path: str, body: dict[str, Any]) -> tuple[httpx2.Response, str]:
    """Return the response, and the outcome (status, body and jobs) as text, without IDs or timestamps."""
    stack.worker.assignments.clear()
    response = stack.http.post(path, json=body)
    jobs = sorted(_described(each.job, has_seed="seed" in body) for each in stack.worker.assignments)
    return response, f"{response.status_code} {_VOLATILE.sub('*', response.text)} {jobs}"


def _described(job: Job, *, has_seed: bool) -> str:
    sampling = job.sampling if has_seed else msgspec.structs.replace(job.sampling, seed=0)
    return repr(msgspec.structs.replace(job, job_id="", note=str(bool(job.note)), sampling=sampling))
