"""What a row says of a field, and how it is tried.

A row is kept under "Model.field" of the document, and names the place where the field stands in a body of a
route. What a request comes to is compared whole: its job as the worker gets it, and the answer.
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
    "Shown",
    "Taken",
    "Talk",
    "changed",
    "outcome",
    "owners",
    "unsupported_fields",
]

ABSENT = "(absent)"
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_VOLATILE = re.compile(r"[0-9a-f]{16,}|\b1[0-9]{9}(\.\d+)?\b")  # ids and times


class Differs(NamedTuple):
    """Each value comes to something else."""

    path: str
    body: dict[str, Any]
    place: str
    values: tuple[Any, ...]


class Hint(NamedTuple):
    """Taken without any difference; what is no such value is refused by name."""

    path: str
    body: dict[str, Any]
    place: str
    taken: Any
    refused: Any


class Taken(NamedTuple):
    """Taken without any difference, whatever it is."""

    path: str
    body: dict[str, Any]
    place: str
    taken: Any


class Only(NamedTuple):
    """The body's own value is answered and another refused, at ``param``: the place, unless it is said."""

    path: str
    body: dict[str, Any]
    place: str
    refused: Any
    param: str = ""


class Shown(NamedTuple):
    """A test elsewhere, as file::name, which speaks of the field."""

    test: str


Row = Differs | Hint | Taken | Only | Shown


class Talk(NamedTuple):
    """Rows of one route; about ``body``, unless they name another."""

    path: str
    body: dict[str, Any]

    def differs(self, place: str, *values: Any) -> Differs:
        return Differs(self.path, self.body, place, values)

    def hint(self, place: str, taken: Any, refused: Any, body: dict[str, Any] | None = None) -> Hint:
        return Hint(self.path, self.body if body is None else body, place, taken, refused)

    def only(
        self, place: str, refused: Any = "nonsense", body: dict[str, Any] | None = None, param: str = ""
    ) -> Only:
        return Only(self.path, self.body if body is None else body, place, refused, param)


def unsupported_fields(model: type[BaseModel]) -> dict[str, Unsupported]:
    """Return the fields of a request that the server knows and does not support."""
    return {
        name: mark
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Unsupported)
    }


def steps(place: str) -> list[str | int]:
    return [name or int(number) for name, number in _STEP.findall(place)]


def changed(body: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with that value in the place."""
    body = inner = copy.deepcopy(body)
    *before, last = steps(place)
    for step in before:
        inner = inner[step]  # type: ignore[index]
    if value == ABSENT:
        inner.pop(last, None)  # type: ignore[arg-type]
    else:
        inner[last] = value  # type: ignore[index]
    return body


def owners(path: str, place: str) -> set[str]:
    """The models of the document that have the place's last name where the place says."""
    *before, last = steps(place)
    held = alternatives(REQUEST_SCHEMAS[path])
    for step in before:
        held = [
            branch
            for schema in held
            for branch in alternatives(schema.get("items" if isinstance(step, int) else "properties", {}))
            if isinstance(step, int)
        ] or [
            branch
            for schema in held
            if step in schema.get("properties", {})
            for branch in alternatives(schema["properties"][step])
        ]
    found = [schema for schema in held if last in schema.get("properties", {})]
    return {name for name, schema in SCHEMAS.items() if any(schema is each for each in found)}


def outcome(stack: Stack, path: str, body: dict[str, Any]) -> tuple[httpx2.Response, str]:
    """The answer, and all that came of the request, without what is never the same."""
    stack.worker.assignments.clear()
    response = stack.http.post(path, json=body)
    jobs = sorted(_described(each.job, has_seed="seed" in body) for each in stack.worker.assignments)
    return response, f"{response.status_code} {_VOLATILE.sub('*', response.text)} {jobs}"


def _described(job: Job, *, has_seed: bool) -> str:
    sampling = job.sampling if has_seed else msgspec.structs.replace(job.sampling, seed=0)
    return repr(msgspec.structs.replace(job, job_id="", note=str(bool(job.note)), sampling=sampling))
