"""Parses HTTP responses whose bodies have already been read."""

from __future__ import annotations

from typing import TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from llava_client.errors import APIError, status_error
from llava_client.types import Answer, ChatCompletion, EmbeddingList, Embeddings, Model, ModelList

__all__ = ["parse", "raise_for_status", "read_answer", "read_default_model", "read_embeddings", "read_models"]

T = TypeVar("T", bound=BaseModel)


def read_answer(response: httpx2.Response) -> Answer:
    """Parse a chat completion. Raises APIError if the response is an error or is invalid."""
    completion = parse(response, ChatCompletion)
    choices = [choice.choice() for choice in sorted(completion.choices, key=lambda choice: choice.index)]
    return Answer(
        text=choices[0].text,
        finish_reason=choices[0].finish_reason,
        usage=completion.usage,
        choices=tuple(choices),
        id=completion.id,
        model=completion.model,
        request_id=response.headers.get("x-request-id"),
    )


def read_models(response: httpx2.Response) -> list[Model]:
    """Parse a model list, keeping the server's order.

    Raises APIError if the response is an error or is invalid.
    """
    return parse(response, ModelList).models()


def read_default_model(response: httpx2.Response) -> str:
    """Return the ID of the first model in a model list.

    Raises APIError if the list is empty, or if the response is an error or is invalid.
    """
    models = read_models(response)
    if not models:
        raise APIError(f"{response.url} returned no models. Start a worker, or specify a model with model=.")
    return models[0].id


def read_embeddings(response: httpx2.Response) -> Embeddings:
    """Parse embeddings and return them in input order.

    Raises APIError if the response is an error or is invalid.
    """
    embeddings = parse(response, EmbeddingList)
    ordered = sorted(embeddings.data, key=lambda embedding: embedding.index)
    return Embeddings(
        vectors=tuple(embedding.vector() for embedding in ordered),
        usage=embeddings.usage,
        model=embeddings.model,
        request_id=response.headers.get("x-request-id"),
    )


def raise_for_status(response: httpx2.Response) -> httpx2.Response:
    """Return the response unchanged, or raise APIStatusError if it is an error."""
    if not response.is_success:
        raise status_error(response)
    return response


def parse(response: httpx2.Response, model: type[T]) -> T:
    """Parse the JSON body of a response. Raises APIError if the response is an error or is invalid."""
    try:
        return model.model_validate_json(raise_for_status(response).content)
    except ValidationError as exc:
        raise APIError(
            f"The response from {response.url} is not a valid {model.__name__}. Check the base URL.",
            body=response.text,
        ) from exc
