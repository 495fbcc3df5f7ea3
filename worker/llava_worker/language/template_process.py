"""Renders chat templates with transformers in a `SandboxedProcess`.

A template is untrusted code. Jinja's sandbox prevents side effects, but a template can loop without end or
build a text that uses all memory. Importing transformers takes about a second, so the process serves
all requests. It caches compiled templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from llava_wire.messages.event import ErrorCode

from llava_worker.sandboxed_process import ProcessFailure, ProcessLimits, SandboxedProcess, serve

__all__ = ["RenderingError", "TemplateProcess"]

_LIMITS = ProcessLimits(cpu_s=2.0, timeout_s=30.0, memory_bytes=512 << 20)
_SURROGATE = re.compile("[\ud800-\udfff]")  # cannot be encoded in UTF-8, and tokenizers reject them
_MAX_ERROR_LENGTH = 500  # an error message can contain the whole text
# The rendered text can be longer than the messages by this factor plus a constant.
_MAX_GROWTH, _MAX_ADDED_LENGTH = 4, 1 << 20


class RenderingError(Exception):
    """The template is invalid, rejects the messages, or exceeds a limit.

    The message is a sentence without its subject, which is the template.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class TemplateProcess:
    """Renders templates in a child process, which is restarted if it exceeds a limit. Thread-safe."""

    def __init__(self, limits: ProcessLimits = _LIMITS) -> None:
        """Start the process without waiting until transformers has been imported."""
        self._process = SandboxedProcess("llava_worker.language.template_process", limits)
        self._process.start()

    def compile(self, source: str) -> bool:
        """Compile the template. Return whether it expects the content of messages as a list of parts.

        Raises RenderingError.
        """
        return bool(self._request({"source": source}))

    def render(
        self,
        source: str,
        messages: list[dict[str, Any]],
        *,
        variables: dict[str, str],
        is_continued: bool,
    ) -> str:
        """Render like transformers' ``apply_chat_template``. Raises RenderingError.

        If ``is_continued`` is true, the text ends with the text of the last message, as with
        ``continue_final_message``. Otherwise, it ends with the generation prompt.
        """
        return str(
            self._request(
                {
                    "source": source,
                    "messages": messages,
                    "variables": variables,
                    "is_continued": is_continued,
                }
            )
        )

    def close(self) -> None:
        """Stop the process. A later request starts a new one."""
        self._process.close()

    def _request(self, request: dict[str, Any]) -> Any:
        try:
            reply = self._process.request(request)
        except ProcessFailure as failure:
            self._process.start()  # in the background, so that the next request waits less
            raise self._rendering_error(failure) from failure
        if "error" in reply:
            raise RenderingError(ErrorCode.INVALID_REQUEST, reply["error"])
        return reply["value"]

    def _rendering_error(self, failure: ProcessFailure) -> RenderingError:
        limits = self._process.limits
        if failure.reason == "time":
            return RenderingError(
                ErrorCode.INVALID_REQUEST,
                f"takes longer than {limits.cpu_s:g} seconds to render. Shorten the messages, or simplify "
                "the template.",
            )
        if failure.reason == "memory":
            memory_mb = limits.memory_bytes >> 20
            return RenderingError(
                ErrorCode.INVALID_REQUEST,
                f"needs more than {memory_mb} MiB of memory to render. Shorten the messages, or simplify the "
                "template.",
            )
        return RenderingError(
            ErrorCode.INTERNAL_ERROR,
            "could not be rendered, because the rendering process exited unexpectedly. Retry the request.",
        )


def _open_renderer(_setup: Any) -> Callable[[Any], object]:
    from transformers.utils import chat_template_utils

    def handle(request: Any) -> dict[str, object]:
        try:
            if "messages" not in request:
                return _compile(chat_template_utils, request["source"])
            return {"value": _render(chat_template_utils, request)}
        except RenderingError as error:
            return {"error": str(error)}

    return handle


def _compile(transformers: Any, source: str) -> dict[str, object]:
    from llava_worker.language.content_format import expects_list_content

    try:
        template = transformers._compile_jinja_template(source)
        return {"value": expects_list_content(template.environment.parse(source))}
    except MemoryError:
        raise
    except Exception as error:  # untrusted code can raise any type of exception
        return {"error": f"is invalid: {_text_of(error)}"}


def _render(transformers: Any, request: dict[str, Any]) -> str:
    """Render the messages. Raises RenderingError.

    If the template rejects the messages, which some templates do if there is a system message or if it is
    combined with images, its text is rendered at the start of the first user message instead.
    """
    try:
        return _render_once(transformers, request)
    except RenderingError:
        messages = request["messages"]
        if [message["role"] for message in messages[:2]] != ["system", "user"]:
            raise
        with suppress(RenderingError):  # the first error concerns the messages of the client
            return _render_once(transformers, {**request, "messages": _without_system(messages)})
        raise


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with the text of the system message in the first user message."""
    system, first, *others = messages
    if isinstance(first["content"], str):
        content: Any = f"{system['content']}\n\n{first['content']}"
    else:
        texts = [{**part, "text": f"{part['text']}\n\n"} for part in system["content"]]
        content = [*texts, *first["content"]]
    return [{"role": "user", "content": content}, *others]


def _render_once(transformers: Any, request: dict[str, Any]) -> str:
    is_continued = request["is_continued"]
    try:
        rendered, _ = transformers.render_jinja_template(
            conversations=[request["messages"]],
            chat_template=request["source"],
            add_generation_prompt=not is_continued,
            continue_final_message=is_continued,
            **request["variables"],
        )
    except MemoryError:
        raise
    except Exception as error:  # untrusted code can raise any type of exception
        reason = _text_of(error)
        if is_continued and reason.startswith("continue_final_message is set"):
            raise RenderingError(
                ErrorCode.INVALID_REQUEST,
                "modifies assistant messages, so a partial response cannot be continued. End with a user "
                "message.",
            ) from error
        raise RenderingError(ErrorCode.INVALID_REQUEST, f"rejected the messages: {reason}") from error
    text = str(rendered[0])
    if _SURROGATE.search(text):
        raise RenderingError(
            ErrorCode.INVALID_REQUEST,
            "inserts a surrogate, which is half of a character (U+D800 to U+DFFF). Correct the template.",
        )
    num_characters = sum(_num_characters(message["content"]) for message in request["messages"])
    limit = _MAX_GROWTH * num_characters + _MAX_ADDED_LENGTH
    if (length := len(text)) > limit:
        raise RenderingError(
            ErrorCode.INVALID_REQUEST,
            f"expands messages of {num_characters} characters to {length}; the limit is {limit}. Simplify "
            "the template.",
        )
    return text


def _text_of(error: Exception) -> str:
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", str(error)[:_MAX_ERROR_LENGTH])


def _num_characters(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part.get("text", "")) for part in content)


if __name__ == "__main__":
    serve(_open_renderer)
