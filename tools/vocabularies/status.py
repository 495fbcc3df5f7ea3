"""The status of each field of the vocabularies: supported, neutral, rejected or unknown.

A field is supported if the request model of the route defines it. The rules in ``api/compatibility`` decide
the others.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from llava_server.api.anthropic.request import CountTokensRequest, MessagesRequest
from llava_server.api.batches.request import BatchRequest
from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.stored_messages import ChatUpdate
from llava_server.api.compatibility.rule import Neutral, Only, Rules, steps_of
from llava_server.api.completions.request import CompletionRequest
from llava_server.api.embeddings.request import EmbeddingRequest
from llava_server.api.files.multipart import FileUpload
from llava_server.api.ollama.request import EmbedRequest, GenerateRequest, OllamaChatRequest
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.tokenize.request import DetokenizeRequest, TokenizeRequest
from pydantic import BaseModel

__all__ = ["MODELS", "RULES", "Status", "in_model", "is_closed", "literals_of", "status_of"]

Status = Literal["supported", "neutral", "rejected"]
Tag = tuple[str, str]

MODELS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions/{job_id}": ChatUpdate,
    "/v1/responses": ResponseRequest,
    "/v1/responses/input_tokens": ResponseRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/v1/files": FileUpload,
    "/v1/batches": BatchRequest,
    "/api/chat": OllamaChatRequest,
    "/api/generate": GenerateRequest,
    "/api/embed": EmbedRequest,
}
RULES: dict[str, Rules] = {route: getattr(model, "rules", Rules()) for route, model in MODELS.items()}


@dataclass(frozen=True)
class _Members:
    """The models and literal values that a field accepts, and whether it accepts any string or object."""

    models: tuple[type[BaseModel], ...] = ()
    literals: frozenset[str] = frozenset()
    accepts_text: bool = False
    accepts_anything: bool = False


def status_of(route: str, path: str) -> Status | None:
    """Return the status of a field, or None if it would be ignored although it has no rule."""
    status = in_model(route, path)
    if status is not None:
        return status
    rule = RULES[route].covering(path)
    if rule is None:
        return None
    return "neutral" if isinstance(rule, Neutral) else "rejected"


def is_closed(route: str, path: str) -> bool:
    """Return whether the objects at a path are rejected or have no effect. Their fields do not matter."""
    if status_of(route, path) in ("neutral", "rejected"):
        return True
    only = [
        rule
        for name, rule in RULES[route].by_path.items()
        if isinstance(rule, Only) and _is_excluded(path, name, rule)
    ]
    return bool(only)


def literals_of(route: str, path: str) -> frozenset[str] | None:
    """Return the literal values that the model accepts for a field, or None if it accepts any string."""
    members = _Members(models=(MODELS[route],))
    for name, tag in steps_of(path):
        fields = [annotation for model in members.models for annotation in _field(model, name)]
        members = _members(Union[tuple(fields)]) if fields else _Members()  # noqa: UP007
        if members.accepts_anything:
            return None
        if tag is not None:
            members = _Members(tuple(model for model in members.models if _has_tag(model, tag)))
    return None if members.accepts_text else members.literals


def _is_excluded(path: str, name: str, rule: Only) -> bool:
    """Return whether a path is in an object whose tag the rule for the field ``name`` rejects."""
    steps, (*owners, (key, _)) = steps_of(path), steps_of(name)
    if len(steps) < len(owners) or [step[0] for step in steps[: len(owners)]] != [step[0] for step in owners]:
        return False
    tag = steps[len(owners) - 1][1]
    return tag is not None and tag[0] == key and tag[1] not in rule.values


def in_model(route: str, path: str) -> Status | None:
    """Follow a path through the model. A tag that no model accepts means that the object is rejected."""
    if MODELS[route] is FileUpload:  # a form
        return "supported" if _field(FileUpload, path) else None
    members = _Members(models=(MODELS[route],))
    for name, tag in steps_of(path):
        if members.accepts_anything:
            return "supported"
        fields = [annotation for model in members.models for annotation in _field(model, name)]
        if not fields:
            return "rejected" if members.models and all(map(_forbids_others, members.models)) else None
        if any("Unsupported" in repr(annotation) for annotation in fields):
            return "rejected"
        members = _members(Union[tuple(fields)])  # noqa: UP007 - the members are only known at run time
        if tag is not None and not members.accepts_anything:
            selected = tuple(model for model in members.models if _has_tag(model, tag))
            if not selected:
                return "rejected"
            members = _Members(selected)
    return "supported"


def _field(model: type[BaseModel], name: str) -> list[Any]:
    return [
        Annotated[field.annotation, field]
        for each, field in model.model_fields.items()
        if name == (field.alias or each)
    ]


def _has_tag(model: type[BaseModel], tag: Tag) -> bool:
    return any(tag[1] in _members(annotation).literals for annotation in _field(model, tag[0]))


def _forbids_others(model: type[BaseModel]) -> bool:
    return model.model_config.get("extra") == "forbid"


def _members(annotation: Any) -> _Members:
    """Return the types in an annotation. Lists count as their items."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated or origin is list:
        return _members(arguments[0])
    if origin is Literal:
        return _Members(literals=frozenset(map(str, arguments)))
    if origin in (Union, types.UnionType):
        parts = [_members(each) for each in arguments]
        return _Members(
            tuple(model for each in parts for model in each.models),
            frozenset(value for each in parts for value in each.literals),
            any(each.accepts_text for each in parts),
            any(each.accepts_anything for each in parts),
        )
    if annotation is Any or annotation is dict or origin is dict:
        return _Members(accepts_anything=True)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _Members((annotation,))
    return _Members(accepts_text=annotation in (str, bytes))
