"""Request parsing. The first validation error is raised as an ApiError."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import from_json

from llava_server.api.fields.base import RequestModel, renamed
from llava_server.api.json_limits import JsonLimits, JsonTooLarge, check_json
from llava_server.errors import ApiError

__all__ = [
    "MAX_START",
    "check_num_images",
    "check_text",
    "convert_request",
    "idempotency_key",
    "parameter_error",
    "parse_request",
]

Model = TypeVar("Model", bound=RequestModel)

_GOOD_KEY = re.compile(r"[!-~]{1,255}")
MAX_START = 999_999_999  # maximum number of tokens or events that a client can skip
# The escape of a high surrogate without a low one, or of a low surrogate without a high one. The pattern
# begins with constant bytes, which makes the search fast.
_LONE_SURROGATE = re.compile(
    rb"\\u(?:[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|[dD][c-fC-F][0-9a-fA-F]{2}(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
_HIDDEN = b"\0"  # replaces escaped backslashes during the search
_MAX_REPAIRS = 1 << 20  # maximum number of lone surrogates in a body
# Pydantic's messages for Python objects, and those that use the terms of JSON.
_JSON_MESSAGES = {
    "dict_type": "input should be an object",
    "list_type": "input should be a valid array",
    "model_attributes_type": "input should be an object",
    "model_type": "input should be an object",
    "none_required": "input should be null",
}
_SHOWN = 60  # maximum number of characters of an invalid value shown in an error message
_UNSUPPORTED_PARTS = {"input_audio", "audio_url", "video_url", "image_embeds"}


def parse_request(model: type[Model], body: bytes) -> Model:
    """Parse a request body. Raises ApiError (400, 413), which names the field and its allowed values.

    The body's size is checked before any object is built. The body is parsed once: the rules and the model
    check the same objects.
    """
    value = _parse_json(body, model.json_limits)
    model.rules.check(value)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _as_api_error(_first_detail(error), model) from error


def _parse_json(body: bytes, limits: JsonLimits) -> Any:
    """Return the parsed body. Raises ApiError (400, 413).

    A byte order mark is ignored. Escapes of lone surrogates, which are not valid Unicode, are replaced with
    U+FFFD, as browsers do. Clients that truncate text in the middle of an emoji send such escapes.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        check_json(body, limits)
        return from_json(body)
    except JsonTooLarge as error:
        raise ApiError("request_too_large", error.about("The request body")) from error
    except ValueError as error:
        _check_utf8(body)
        try:
            return from_json(_without_lone_surrogates(body))
        except ValueError as reason:
            raise ApiError("invalid_json", f"The request body is not valid JSON: {reason}.") from error


def _check_utf8(body: bytes) -> None:
    """Raise ApiError (400) unless the body is encoded in UTF-8."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:4]:
        raise ApiError(
            "invalid_json", "The request body is encoded in UTF-16 or UTF-32. JSON must be encoded in UTF-8."
        )
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        byte, position = body[error.start], error.start
        raise ApiError(
            "invalid_json",
            f"The request body is not valid UTF-8: byte 0x{byte:02x} at position {position}. JSON must be "
            "encoded in UTF-8.",
        ) from error


def _without_lone_surrogates(body: bytes) -> bytes:
    """Replace the escapes of lone surrogates with that of U+FFFD. All other bytes are unchanged."""
    if _HIDDEN in body:  # a control character, which is not valid JSON
        return body
    hidden = body.replace(rb"\\", _HIDDEN)  # a "u" after an escaped backslash is not part of an escape
    return _LONE_SURROGATE.sub(rb"\\ufffd", hidden, count=_MAX_REPAIRS).replace(_HIDDEN, rb"\\")


def parameter_error(detail: Mapping[str, Any]) -> ApiError:
    """Return the error for a path or query parameter that FastAPI's validation rejected."""
    return _as_api_error({**detail, "loc": detail["loc"][1:]}, None)  # without "path" or "query"


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """Return the value of the ``Idempotency-Key`` header, or None if it is not set. Raises ApiError (400)."""
    key = headers.get("idempotency-key")
    if key is not None and not _GOOD_KEY.fullmatch(key):
        num_characters = len(key)
        raise ApiError(
            "invalid_value",
            "The Idempotency-Key header must consist of 1 to 255 visible ASCII characters "
            f"(got {num_characters} characters). Use a UUID, for example.",
        )
    return key


def convert_request(model: type[Model], fields: Mapping[str, Any], names: Mapping[str, str]) -> Model:
    """Convert the fields of another API's request to a request of type ``model``.

    ``names`` maps the model's fields to those of the other API, as defined by `renamed`. Raises the same
    errors as ``parse_request``, but with the other API's field names.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        detail = _first_detail(error)
        api_error = _as_api_error(detail, model)
        path = api_error.param or ""
        param, message = renamed(path, names), api_error.message
        if path and message.startswith(path):
            message = param + message.removeprefix(path)
        for name in detail.get("ctx", {}).get("mentioned", ()):
            message = message.replace(name, renamed(name, names))
        raise ApiError(api_error.code, message, param=param or None) from error


def _first_detail(error: ValidationError) -> Mapping[str, Any]:
    return error.errors(include_url=False)[0]


def check_num_images(num_images: int, max_images: int, *, param: str) -> None:
    """Raise ApiError if the number of images exceeds the limit."""
    if num_images > max_images:
        raise ApiError(
            "too_many_images",
            f"The request contains {num_images} images; the limit is {max_images}. Remove images or split "
            "the request.",
            param=param,
        )


def check_text(num_bytes: int, max_text_bytes: int, *, param: str) -> None:
    """Raise ApiError if the text exceeds the size limit."""
    if num_bytes > max_text_bytes:
        raise ApiError(
            "context_length_exceeded",
            f"{param}: the text is {num_bytes} bytes; the limit is {max_text_bytes}. Shorten the text.",
            param=param,
        )


def _as_api_error(detail: Any, model: type[BaseModel] | None) -> ApiError:
    kind, context = detail["type"], detail.get("ctx", {})
    param = context.get("param") or _path(model, (*detail["loc"], *context.get("fields", ())))
    if kind == "missing":
        return ApiError("missing_required_parameter", f"{param} is required.", param=param)
    if kind in ("unsupported_parameter", "unsupported_content", "invalid_value"):
        return ApiError(kind, detail["msg"], param=param)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(param, context)
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    message = _JSON_MESSAGES.get(kind) or detail["msg"][:1].lower() + detail["msg"][1:]
    message = message.replace(" after validation", "")
    where, got = param or "The request body", _got(detail.get("input"))
    return ApiError(code, f"{where}: {message}{got}.", param=param)


def _wrong_tag(param: str | None, context: dict[str, Any]) -> ApiError:
    """Return the error for a union with a missing or unknown discriminator (role, type)."""
    named = str(context["discriminator"]).strip("'")
    field = "type" if named.endswith("()") else named  # the discriminator is a function
    path = f"{param}.{field}"
    if "tag" not in context:
        return ApiError("missing_required_parameter", f"{path} is required.", param=path)
    tag, expected_tags = str(context["tag"])[:_SHOWN], context.get("expected_tags", "the supported values")
    code = "unsupported_content" if tag in _UNSUPPORTED_PARTS else "invalid_value"
    return ApiError(code, f"{path} is {tag!a}, but it must be one of {expected_tags}.", param=path)


def _path(model: Any, loc: tuple[int | str, ...]) -> str | None:
    """Return the path of an error in a body of this type, such as ``messages[0].content[1].image_url.url``.

    Pydantic's ``loc`` also contains the tags of union members, which are not part of the path.
    """
    path = ""
    for step in loc:
        members = _union_members(model)
        if step in members:
            model = members[step]
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
        model = _inner_type(model, step)
    return path or None


def _union_members(annotation: Any, discriminator: str = "") -> dict[Any, Any]:
    """Return the members of a tagged union, keyed by tag, or an empty dict for other types."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for mark in args[1:]:
            if isinstance(mark, Tag):
                return {mark.tag: args[0]}
            if isinstance(mark, FieldInfo) and isinstance(mark.discriminator, str):
                discriminator = mark.discriminator
        return _union_members(args[0], discriminator)
    if origin in (Union, UnionType):
        return {tag: member for arg in args for tag, member in _union_members(arg, discriminator).items()}
    if discriminator and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict.fromkeys(get_args(annotation.model_fields[discriminator].annotation), annotation)
    return {}


def _inner_type(annotation: Any, step: int | str) -> Any:
    """Return the type of a model field, list item or dict value, or None if it is unknown."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _inner_type(args[0], step)
    if origin in (Union, UnionType):
        return next(filter(None, (_inner_type(arg, step) for arg in args)), None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if step in (name, field.alias):
                return Annotated[field.annotation, field]
    return args[-1] if origin in (list, dict) else None


def _got(value: Any) -> str:
    if isinstance(value, bool | int | float | str) or value is None:
        text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
        text = "null" if value is None else text
        return f" (got {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'})"
    return ""
