"""From bytes to a ChatRequest, or to one clear sentence about the first thing that is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from llava_server.api.chat.request import AssistantMessage, ChatRequest, ImagePart, TextPart
from llava_server.api.tools.prompt import tools_text
from llava_server.errors import ApiError

__all__ = [
    "MAX_START",
    "as_chat",
    "check_num_images",
    "check_sizes",
    "check_text",
    "idempotency_key",
    "parameter_error",
    "parse_request",
]

Shape = TypeVar("Shape", bound=BaseModel)

_GOOD_KEY = re.compile(r"[!-~]{1,255}")
MAX_START = 999_999_999  # tokens or events that a reader may have already
_SHOWN = 60  # characters of a foreign value that an error may repeat
_UNSUPPORTED_PARTS = {"input_audio", "audio_url", "file", "video_url", "image_embeds"}
# Names that unions put into a path behind an index: roles and types of what lists hold.
_TAGS = {
    *("system", "developer", "user", "assistant", "tool"),
    *("text", "image_url", "image", "tool_use", "tool_result", "input_text", "output_text", "input_image"),
    *("message", "function_call", "function_call_output"),
}


def parse_request(shape: type[Shape], body: bytes) -> Shape:
    """Raises ApiError (400) naming the field, the value and what is allowed."""
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise _as_api_error(error.errors(include_url=False)[0]) from error


def parameter_error(detail: Mapping[str, Any]) -> ApiError:
    """Of a name in a path or a query that the framework found wrong."""
    return _as_api_error({**detail, "loc": detail["loc"][1:]})  # without "path" or "query"


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The request's ``Idempotency-Key``, None without one. Raises ApiError (400)."""
    key = headers.get("idempotency-key")
    if key is not None and not _GOOD_KEY.fullmatch(key):
        raise ApiError(
            "invalid_value",
            f"the header Idempotency-Key takes 1 to 255 visible ASCII characters (got {len(key)}): "
            "a UUID is a good one",
        )
    return key


def as_chat(form: Mapping[str, Any], names: Mapping[str, str]) -> ChatRequest:
    """Another route's request, in the form of a chat. Raises ApiError like ``parse_request``, with that
    route's ``names`` for the fields of a chat."""
    try:
        return ChatRequest.model_validate(form)
    except ValidationError as error:
        refused = _as_api_error(error.errors(include_url=False)[0])
        field, rest = _split_path(refused.param or "")
        param = f"{names.get(field, field)}{rest}" or None
        raise ApiError(refused.code, refused.message, param=param) from error


def check_sizes(chat: ChatRequest, *, max_text_bytes: int, max_images: int) -> None:
    """What this server carries to a worker; the model's context is the worker's to judge. Raises ApiError."""
    num_bytes, num_images = len(tools_text(chat).encode()), 0
    for message in chat.messages:
        parts = [message.content] if isinstance(message.content, str) else message.content or []
        for part in parts:
            text = part if isinstance(part, str) else part.text if isinstance(part, TextPart) else ""
            num_bytes += len(text.encode())
            num_images += isinstance(part, ImagePart)
        if isinstance(message, AssistantMessage):
            num_bytes += sum(len(call.function.arguments.encode()) for call in message.tool_calls or ())
    check_num_images(num_images, max_images, param="messages")
    check_text(num_bytes, max_text_bytes, param="messages")


def check_num_images(num_images: int, max_images: int, *, param: str) -> None:
    """Raises ApiError above the limit."""
    if num_images > max_images:
        raise ApiError(
            "too_many_images",
            f"the request has {num_images} pictures; the limit is {max_images}",
            param=param,
        )


def check_text(num_bytes: int, max_text_bytes: int, *, param: str) -> None:
    """Raises ApiError above the limit."""
    if num_bytes > max_text_bytes:
        raise ApiError(
            "context_length_exceeded",
            f"{param}: {num_bytes} bytes of text; the limit is {max_text_bytes}: shorten the text",
            param=param,
        )


def _as_api_error(detail: Any) -> ApiError:
    kind, context = detail["type"], detail.get("ctx", {})
    param = context.get("param") or _path((*detail["loc"], *context.get("fields", ())))
    if kind == "json_invalid":
        return ApiError("invalid_json", f"the body is not valid JSON: {context['error']}")
    if kind == "missing":
        return ApiError("missing_required_parameter", f"{param} is required", param=param)
    if kind in ("unsupported_parameter", "unsupported_content"):
        return ApiError(kind, detail["msg"], param=param)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(param, context)
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    message = (detail["msg"][:1].lower() + detail["msg"][1:]).replace(" after validation", "")
    if kind == "invalid_value":
        return ApiError(code, message, param=param)
    where = param or "the body"
    return ApiError(code, f"{where}: {message}{_got(detail.get('input'))}", param=param)


def _wrong_tag(param: str | None, context: dict[str, Any]) -> ApiError:
    """A role or a part's type that is missing or not one of ours."""
    named = str(context["discriminator"]).strip("'")
    field = "type" if named.endswith("()") else named  # told apart by a function of ours
    path = f"{param}.{field}"
    if "tag" not in context:
        return ApiError("missing_required_parameter", f"{path} is required", param=path)
    tag, expected = str(context["tag"])[:_SHOWN], context.get("expected_tags", "another")
    code = "unsupported_content" if tag in _UNSUPPORTED_PARTS | {"function"} else "invalid_value"
    return ApiError(code, f"{path} is {tag!a}; it must be one of {expected}", param=path)


def _path(loc: tuple[Any, ...]) -> str | None:
    """``messages[0].content[1].image_url.url``, without the names that unions put between: tags behind an
    index, and what stands in angle brackets.
    """
    path, before = "", None
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (isinstance(before, int) and part in _TAGS) and not part.startswith("<"):
            path += f".{part}" if path else part
        before = part
    return path or None


def _split_path(path: str) -> tuple[str, str]:
    """The field, and what follows it."""
    field = re.match(r"[^.\[]*", path)
    end = field.end() if field else 0
    return path[:end], path[end:]


def _got(value: Any) -> str:
    if isinstance(value, bool | int | float | str) or value is None:
        text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
        text = "null" if value is None else text
        return f" (got {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'})"
    return ""
