"""One function per endpoint. Each returns a request and the parser for its response.

The only I/O is reading image files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2

from llava_client.batches import Batch
from llava_client.chat_request import CHAT_PATH, MODELS_PATH, completion_path
from llava_client.images import Images, image_parts
from llava_client.json_body import JSON_HEADERS, encode_json
from llava_client.parse_response import (
    parse,
    raise_for_status,
    read_answer,
    read_default_model,
    read_embeddings,
    read_models,
)
from llava_client.types import Answer, Deleted, Embeddings, FileStored, Model, Text, Tokens

__all__ = [
    "ApiRequest",
    "cancel_batch",
    "create_batch",
    "default_model",
    "delete_answer",
    "detokenize",
    "detokenize_body",
    "download",
    "embed",
    "embed_body",
    "models",
    "retrieve_answer",
    "retrieve_batch",
    "tokenize",
    "tokenize_body",
    "upload",
]

_BATCHES_PATH = "/v1/batches"
_FILES_PATH = "/v1/files"

T = TypeVar("T")


@dataclass(frozen=True)
class ApiRequest(Generic[T]):
    """A request and the function that parses its response.

    ``parse`` raises APIError if the response is an error or is invalid. ``is_retryable`` indicates whether
    the request may be retried after a failure.
    """

    method: str
    path: str
    parse: Callable[[httpx2.Response], T]
    body: Mapping[str, Any] | None = None
    file: bytes | None = None
    is_retryable: bool = True

    def content(self) -> dict[str, Any]:
        """Return the arguments of ``httpx2.Client.build_request`` that set the request body."""
        if self.file is not None:
            return {"files": {"file": ("requests.jsonl", self.file)}, "data": {"purpose": "batch"}}
        return {} if self.body is None else {"content": encode_json(self.body), "headers": JSON_HEADERS}


def models() -> ApiRequest[list[Model]]:
    return ApiRequest("GET", MODELS_PATH, read_models)


def default_model() -> ApiRequest[str]:
    return ApiRequest("GET", MODELS_PATH, read_default_model)


def embed_body(text: str | Sequence[str] | None, image: Images, model: str | None) -> dict[str, Any]:
    """Return the body of an embeddings request.

    Raises TypeError unless exactly one of ``text`` and ``image`` is given, and ImageError if an image is
    invalid.
    """
    if (text is None) == (image is None):
        raise TypeError("Pass either text or image, not both. Text and image embeddings are not comparable.")
    inputs = image_parts(image) if text is None else text
    return {
        "input": inputs if isinstance(inputs, str) else list(inputs),
        "encoding_format": "base64",
        **_model_field(model),
    }


def embed(body: Mapping[str, Any]) -> ApiRequest[Embeddings]:
    return ApiRequest("POST", "/v1/embeddings", read_embeddings, body)


def tokenize_body(
    text: str | None, messages: Sequence[Mapping[str, Any]] | None, model: str | None
) -> dict[str, Any]:
    """Return the body of a tokenize request.

    Raises TypeError unless exactly one of ``text`` and ``messages`` is given.
    """
    if (text is None) == (messages is None):
        raise TypeError("Pass either text or messages=[...].")
    prompt = {"messages": list(messages)} if messages is not None else {"prompt": text}
    return {**prompt, **_model_field(model)}


def tokenize(body: Mapping[str, Any]) -> ApiRequest[list[int]]:
    return ApiRequest("POST", "/tokenize", lambda response: parse(response, Tokens).tokens, body)


def detokenize_body(tokens: Sequence[int], model: str | None) -> dict[str, Any]:
    return {"tokens": list(tokens), **_model_field(model)}


def detokenize(body: Mapping[str, Any]) -> ApiRequest[str]:
    return ApiRequest("POST", "/detokenize", lambda response: parse(response, Text).prompt, body)


def retrieve_answer(answer_id: str) -> ApiRequest[Answer]:
    return ApiRequest("GET", completion_path(answer_id), read_answer)


def delete_answer(answer_id: str) -> ApiRequest[None]:
    return ApiRequest("DELETE", completion_path(answer_id), _read_deleted)


def upload(data: bytes) -> ApiRequest[str]:
    return ApiRequest("POST", _FILES_PATH, lambda response: parse(response, FileStored).id, file=data)


def download(file_id: str) -> ApiRequest[bytes]:
    return ApiRequest(
        "GET", f"{_FILES_PATH}/{quote(file_id, safe='', errors='replace')}/content", _read_bytes
    )


def create_batch(file_id: str, metadata: Mapping[str, str] | None) -> ApiRequest[Batch]:
    """Return the request that creates a batch.

    The request is not retried, because a retry could create a second batch.
    """
    body: dict[str, Any] = {"input_file_id": file_id, "endpoint": CHAT_PATH, "completion_window": "24h"}
    if metadata is not None:
        body["metadata"] = dict(metadata)
    return ApiRequest("POST", _BATCHES_PATH, _read_batch, body, is_retryable=False)


def retrieve_batch(batch_id: str) -> ApiRequest[Batch]:
    return ApiRequest("GET", _batch_path(batch_id), _read_batch)


def cancel_batch(batch_id: str) -> ApiRequest[Batch]:
    return ApiRequest("POST", f"{_batch_path(batch_id)}/cancel", _read_batch)


def _batch_path(batch_id: str) -> str:
    return f"{_BATCHES_PATH}/{quote(batch_id, safe='', errors='replace')}"


def _model_field(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


def _read_batch(response: httpx2.Response) -> Batch:
    return parse(response, Batch)


def _read_deleted(response: httpx2.Response) -> None:
    parse(response, Deleted)


def _read_bytes(response: httpx2.Response) -> bytes:
    return raise_for_status(response).content
