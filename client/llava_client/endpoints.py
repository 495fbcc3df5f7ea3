"""Requests that have one whole answer, each with how the answer is read. Pure: the clients send them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2

from llava_client.batches import Batch
from llava_client.chat_request import MODELS_PATH, answer_path
from llava_client.images import Images, image_parts
from llava_client.parse_response import (
    parsed,
    read_answer,
    read_default_model,
    read_embeddings,
    read_models,
    succeeded,
)
from llava_client.types import Answer, Deleted, Embeddings, FileStored, Model, Text, Tokens

__all__ = ["Call"]

_BATCHES_PATH = "/v1/batches"
_FILES_PATH = "/v1/files"

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """``is_repeatable``: to send it again after no answer does no harm."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    body: Mapping[str, Any] | None = None
    file: bytes | None = None
    is_repeatable: bool = True

    def content(self) -> dict[str, Any]:
        """What ``httpx2.Client.build_request`` is to be told of the body."""
        if self.file is not None:
            return {"files": {"file": ("requests.jsonl", self.file)}, "data": {"purpose": "batch"}}
        return {} if self.body is None else {"json": self.body}


def models() -> Call[list[Model]]:
    return Call("GET", MODELS_PATH, read_models)


def default_model() -> Call[str]:
    return Call("GET", MODELS_PATH, read_default_model)


def embedding_body(text: str | Sequence[str] | None, image: Images, model: str | None) -> dict[str, Any]:
    """Raises TypeError for texts and pictures together, or neither; ImageError."""
    if (text is None) == (image is None):
        raise TypeError("give either texts or image=: their vectors are not comparable with each other")
    inputs = image_parts(image) if text is None else text
    asked = inputs if isinstance(inputs, str) else list(inputs)
    return {"input": asked, "encoding_format": "base64", **_named(model)}


def embed(body: Mapping[str, Any]) -> Call[Embeddings]:
    return Call("POST", "/v1/embeddings", read_embeddings, body)


def tokens_body(
    text: str | None, messages: Sequence[Mapping[str, Any]] | None, model: str | None
) -> dict[str, Any]:
    """Raises TypeError."""
    if (text is None) == (messages is None):
        raise TypeError("give either a text or messages=[...]")
    asked = {"messages": list(messages)} if messages is not None else {"prompt": text}
    return {**asked, **_named(model)}


def tokenize(body: Mapping[str, Any]) -> Call[list[int]]:
    return Call("POST", "/tokenize", lambda response: parsed(response, Tokens).tokens, body)


def detokenize_body(tokens: Sequence[int], model: str | None) -> dict[str, Any]:
    return {"tokens": list(tokens), **_named(model)}


def detokenize(body: Mapping[str, Any]) -> Call[str]:
    return Call("POST", "/detokenize", lambda response: parsed(response, Text).prompt, body)


def retrieve_answer(answer_id: str) -> Call[Answer]:
    return Call("GET", answer_path(answer_id), read_answer)


def delete_answer(answer_id: str) -> Call[None]:
    return Call("DELETE", answer_path(answer_id), _read_deleted)


def upload(data: bytes) -> Call[str]:
    return Call("POST", _FILES_PATH, lambda response: parsed(response, FileStored).id, file=data)


def download(file_id: str) -> Call[bytes]:
    return Call("GET", f"{_FILES_PATH}/{quote(file_id, safe='')}/content", _read_bytes)


def create_batch(file_id: str, metadata: Mapping[str, str] | None) -> Call[Batch]:
    """Not repeatable: two batches would answer everything twice."""
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    told = {} if metadata is None else {"metadata": dict(metadata)}
    return Call("POST", _BATCHES_PATH, _read_batch, {**body, **told}, is_repeatable=False)


def retrieve_batch(batch_id: str) -> Call[Batch]:
    return Call("GET", _batch_path(batch_id), _read_batch)


def cancel_batch(batch_id: str) -> Call[Batch]:
    return Call("POST", f"{_batch_path(batch_id)}/cancel", _read_batch)


def _batch_path(batch_id: str) -> str:
    return f"{_BATCHES_PATH}/{quote(batch_id, safe='')}"


def _named(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


def _read_batch(response: httpx2.Response) -> Batch:
    return parsed(response, Batch)


def _read_deleted(response: httpx2.Response) -> None:
    parsed(response, Deleted)


def _read_bytes(response: httpx2.Response) -> bytes:
    return succeeded(response).content
