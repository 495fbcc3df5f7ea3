"""The model of commands that were called without ``--model``."""

from __future__ import annotations

from llava_client.client import Client
from llava_client.errors import APIError

__all__ = ["first_model"]


def first_model(client: Client) -> str:
    """Return the first model in the list of the server. Raises LlavaError, also if the list is empty."""
    models = client.models()
    if not models:
        raise APIError(f"{client.base_url} offers no models. Start a worker.")
    return models[0].id
