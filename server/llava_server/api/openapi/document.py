"""The OpenAPI document, built from the app's routes.

Routes parse and serialize bodies themselves, so FastAPI only knows their paths, parameters and summaries. The
decorator ``Operation`` attaches the remaining information to the route function, and ``build_document``
merges it into the document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from llava_server.api.openapi.headers import HEADERS, STREAM, header_parameter, headers_of
from llava_server.api.openapi.schema import Model, Schema, component_schemas, ref
from llava_server.error_response import Error
from llava_server.response_model import ResponseModel
from llava_server.tracing import TRACED_PATHS

__all__ = ["Operation", "build_document"]

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_JSON, _EVENTS = "application/json", "text/event-stream"
ERROR_STATUSES = (400, 401, 404, 408, 409, 413, 415, 429, 500, 503, 504)
_MEANINGS = {
    400: "Invalid request.",
    401: "Missing or invalid API key.",
    403: "The host or the origin of the request is not allowed.",
    404: "Not found.",
    408: "Timed out while receiving or queueing the request.",
    409: "Conflict with the current state.",
    413: "Request body too large.",
    415: "Unsupported media type.",
    429: "API key limit exceeded.",
    500: "Internal error.",
    503: "Temporarily unavailable.",
    504: "Deadline exceeded.",
}
_SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "API key, sent by OpenAI clients as Authorization: Bearer KEY.",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "API key, sent by Anthropic clients as x-api-key: KEY. If the Authorization header is "
        "also set, it must contain the same key.",
    },
}


@dataclass(frozen=True)
class Operation:
    """Decorator for route functions that describes the bodies and headers of requests and responses.

    ``response`` is the model of a successful response or, for raw bytes, the media type. It can be a union of
    models, as can ``error``, if the format depends on the client. ``stream`` is the
    model of a stream's events, or a union of models. If ``stream_name`` is set, the union becomes a named
    component. ``stream_type`` is the media type of the stream. ``headers`` are sent in addition to the
    headers of every response. ``statuses`` are the error statuses whose body is ``error``.
    ``other_responses`` maps other statuses to the model and description of their body.
    """

    description: str
    response: Any
    stream: Any = None
    stream_name: str = ""
    stream_type: str = _EVENTS
    headers: Sequence[str] = ()
    request: type[BaseModel] | None = None
    request_type: str = _JSON
    request_headers: Sequence[str] = ()
    statuses: Sequence[int] = ERROR_STATUSES
    error: Any = Error
    other_responses: Mapping[int, tuple[type[ResponseModel], str]] = field(default_factory=dict)

    def __call__(self, endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["operation"] = self
        return endpoint

    def models(self) -> list[Model]:
        """Return the models of all bodies."""
        others = [model for model, _ in self.other_responses.values()]
        models = [
            *(self.request, *_members(self.response), *self._events(), *_members(self.error)),
            *others,
        ]
        return [model for model in models if isinstance(model, type)]

    def request_body(self) -> Schema | None:
        """Return the operation's ``requestBody``."""
        if self.request is None:
            return None
        return {"required": True, "content": {self.request_type: {"schema": ref(self.request.__name__)}}}

    def responses(self) -> dict[str, Schema]:
        """Return the operation's ``responses``."""
        found = {200: (self.description, self._content())}
        needs_key = 401 in self.statuses
        # A middleware can reject any request with 403, and any request with an API key with 429.
        for status in sorted({*self.statuses, 403, *((429,) if needs_key else ())}):
            found[status] = (f"{_MEANINGS[status]} See the error code for the reason.", _json(self.error))
        for status, (model, description) in self.other_responses.items():
            found[status] = (description, _json(model))
        stream_headers = STREAM if self.stream is not None else ()
        responses = {}
        for status, (description, content) in found.items():
            names = [
                *headers_of(status, needs_key=needs_key),
                *((*self.headers, *stream_headers) if status == 200 else ()),
            ]
            headers = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
            responses[str(status)] = {"description": description, "content": content, "headers": headers}
        return responses

    def stream_component(self, schemas: Mapping[str, Schema]) -> Schema:
        """Return the schema of a named union whose members are distinguished by ``type``."""
        mapping = {}
        for model in self._events():
            kind = schemas[model.__name__]["properties"]["type"]
            for value in kind.get("enum", [kind.get("const")]):
                mapping[value] = ref(model.__name__)["$ref"]
        return {
            "title": self.stream_name,
            "description": "The data of one event. The event name is the value of the type field.",
            "oneOf": [ref(model.__name__) for model in self._events()],
            "discriminator": {"propertyName": "type", "mapping": mapping},
        }

    def _events(self) -> tuple[type[ResponseModel], ...]:
        return () if self.stream is None else _members(self.stream)

    def _content(self) -> dict[str, Schema]:
        """Return the content of a successful response, keyed by media type."""
        if isinstance(self.response, str):
            schema = {"type": "string"}
            is_text = self.response.startswith("text/")
            return {self.response: {"schema": schema if is_text else {**schema, "format": "binary"}}}
        content = _json(self.response)
        if self.stream is not None:
            union = {"anyOf": [ref(model.__name__) for model in self._events()]}
            content[self.stream_type] = {"schema": ref(self.stream_name) if self.stream_name else union}
        return content


def build_document(app: FastAPI, routers: Iterable[APIRouter], *, needs_key: Callable[[str], bool]) -> Schema:
    """Build the OpenAPI document for an app that includes these routers.

    ``needs_key`` returns whether requests to a path require an API key.
    """
    document: Schema = FastAPI.openapi(app)  # ``app.openapi`` may return this function's result
    operations = {
        (route.path_format, method.lower()): operation
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        and isinstance(operation := route.endpoint.__dict__.get("operation"), Operation)
        for method in route.methods or ()
    }
    models = dict.fromkeys(model for operation in operations.values() for model in operation.models())
    schemas = dict(component_schemas(tuple(models)))
    for operation in operations.values():
        if operation.stream_name:
            schemas[operation.stream_name] = operation.stream_component(schemas)
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            operation = operations[path, method]
            described["responses"] = operation.responses()
            if (body := operation.request_body()) is not None:
                described["requestBody"] = body
            everywhere = (
                ("X-Request-Id", "traceparent") if path.startswith(TRACED_PATHS) else ("X-Request-Id",)
            )
            described.setdefault("parameters", []).extend(
                header_parameter(name) for name in (*operation.request_headers, *everywhere)
            )
            if needs_key(path):
                described["security"] = [{name: []} for name in _SECURITY]
    document["components"] = {"schemas": schemas, "headers": dict(HEADERS), "securitySchemes": _SECURITY}
    return document


def _members(model: Any) -> tuple[Any, ...]:
    """Return the members of a union of models, or a tuple with the model itself."""
    return get_args(model) or (model,)


def _json(model: Any) -> dict[str, Schema]:
    schemas = [ref(member.__name__) for member in _members(model)]
    return {_JSON: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
