"""Rules for query parameters of OpenAI's API that have no effect or are not supported."""

from __future__ import annotations

from starlette.requests import Request

from llava_server.api.compatibility.rule import Neutral, Rules, Unsupported

__all__ = ["QUERIES", "check_query"]

# The rules of each operation, keyed by its method and path.
QUERIES: dict[str, Rules] = {
    "GET /v1/models": Rules(
        {
            "lifecycle": Unsupported(
                "All models are active.", ("active", "active,deprecated", "deprecated,active")
            )
        }
    ),
    "GET /v1/responses/{response_id}": Rules(
        {
            "include": Neutral("The response contains the data that its request asked for."),
            "include_obfuscation": Neutral("The server never adds obfuscation."),
        }
    ),
}


async def check_query(request: Request) -> None:
    """Raise ApiError (400) if a rule rejects a query parameter. A dependency of all routes."""
    rules = QUERIES.get(f"{request.method} {request.scope['route'].path}")
    if rules is not None:
        rules.check(dict(request.query_params))
